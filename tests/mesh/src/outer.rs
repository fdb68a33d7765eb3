//! ztunnel's pool of HBONE connections: one for each member and identity, taken until the member says GOAWAY.
//!
//! ztunnel: `src/proxy/pool.rs`. A connection that takes no more tunnels is left to those that it has, and another
//! is dialled; a tunnel that fails is a failure of the application's connection, and is not tried again.

use crate::hbone::{Client, Connection, Failure};
use crate::view::Pick;
use cairn_test_support::stream::H2Stream;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Connection>>>>;

/// The connections of one pod.
pub struct Outer {
    client: Client,
    slots: Mutex<BTreeMap<Pick, Slot>>,
    dialled: AtomicU64,
}

/// A tunnel, and the connection that it must not outlive.
pub struct Tunnel {
    /// Bytes.
    pub stream: H2Stream,
    /// Kept open for as long as the tunnel is used.
    pub connection: Arc<Connection>,
}

impl Outer {
    /// Without connections.
    pub fn new(client: Client) -> Self {
        Outer { client, slots: Mutex::default(), dialled: AtomicU64::new(0) }
    }

    /// The pod.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Connections that were made so far.
    pub fn dialled(&self) -> u64 {
        self.dialled.load(Ordering::SeqCst)
    }

    /// A tunnel through that member, on the connection that there is or on another.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn open(&self, pick: &Pick, authority: &str) -> Result<Tunnel, Failure> {
        let slot = self.slots.lock().unwrap().entry(pick.clone()).or_default().clone();
        let connection = {
            let mut held = slot.lock().await; // who dials lets the others wait
            match &*held {
                Some(connection) if connection.is_ready().await => connection.clone(),
                _ => {
                    *held = None;
                    let connection = self.client.connect_to(pick.member, &pick.id).await?;
                    self.dialled.fetch_add(1, Ordering::SeqCst);
                    held.insert(Arc::new(connection)).clone()
                }
            }
        };
        let stream = connection.open(authority).await?;
        Ok(Tunnel { stream, connection })
    }
}
