//! Sends a request through a waypoint, as a pod's ztunnel does, and takes down what comes back.

use crate::draft::{Draft, Protocol};
use crate::pods::identity;
use cairn_mesh_tests::hbone::{Client, Connection, Failure};
use cairn_test_support::h2c::{H2c, fields};
use cairn_test_support::http1::Http1;
use cairn_test_support::istiod::FakeIstiod;
use cairn_test_support::stream::H2Stream;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::time::timeout;

/// Says which request it is, in the backends' records.
pub const TAG: &str = "x-question";
/// How long an answer may take before there is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the client saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The CONNECT was refused with this status.
    Refused(u16),
    /// The tunnel broke before a response.
    Broken,
    /// Nothing came.
    Silent,
    /// HTTP.
    Reply(Reply),
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Statuses before it.
    pub interim: Vec<u16>,
    /// In the order of the wire.
    pub headers: Vec<(String, String)>,
    /// Decoded.
    pub body: Vec<u8>,
    /// After it.
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// All clients, and their connections to one waypoint.
pub struct Clients {
    waypoint: IpAddr,
    expected: String,
    all: BTreeMap<String, (Client, Option<Connection>)>,
}

impl Clients {
    /// Clients with these identities, each with an address of its own.
    pub fn new(
        waypoint: IpAddr,
        expected: &str,
        istiod: &FakeIstiod,
        ids: impl Iterator<Item = String>,
    ) -> Self {
        let client = |(n, id): (u8, String)| {
            let ip = Ipv4Addr::new(10, 244, 2, 10 + n).into();
            (id.clone(), (Client::new(ip, identity(istiod, &id)), None))
        };
        Clients {
            waypoint,
            expected: expected.to_owned(),
            all: (0..).zip(ids).map(client).collect(),
        }
    }

    /// Asks; `tag` is sent along.
    ///
    /// # Panics
    /// When the waypoint does not take the client.
    pub async fn ask(&mut self, draft: &Draft, tag: &str) -> Answer {
        let Clients { waypoint, expected, all } = self;
        let (client, connection) = all.get_mut(&draft.client).unwrap();
        if connection.is_none() {
            *connection = Some(client.connect(*waypoint, expected).await.unwrap());
        }
        let target = draft.target.to_string();
        let open = connection.as_ref().unwrap().open(&target);
        let stream = match timeout(PATIENCE, open).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(Failure::Refused(status))) => return Answer::Refused(status),
            Ok(Err(Failure::Connect(error))) => panic!("{waypoint}: {error}"),
            Ok(Err(Failure::Broken(_))) => return Answer::Broken,
            Err(_) => return Answer::Silent,
        };
        match timeout(PATIENCE, exchange(stream, draft, tag)).await {
            Ok(Some(reply)) => Answer::Reply(reply),
            Ok(None) => Answer::Broken,
            Err(_) => Answer::Silent,
        }
    }
}

async fn exchange(stream: H2Stream, draft: &Draft, tag: &str) -> Option<Reply> {
    let mut headers = vec![("host", draft.authority.as_str()), (TAG, tag)];
    headers.extend(draft.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let path = draft.path_and_query();
    let Draft { method, body, .. } = draft;
    match draft.protocol {
        Protocol::Http1 => {
            let response = Http1::new(stream).request(method, &path, &headers, body).await.ok()?;
            Some(Reply {
                status: response.status,
                interim: response.interim,
                headers: lower(response.headers.0),
                body: response.body.to_vec(),
                trailers: lower(response.trailers.0),
            })
        }
        Protocol::H2c => {
            let connection = H2c::connect(stream).await.ok()?;
            let response = connection.request(method, &path, &headers, body).await.ok()?;
            Some(Reply {
                status: response.status,
                interim: Vec::new(),
                headers: fields(&response.headers).0,
                body: response.body.to_vec(),
                trailers: fields(&response.trailers).0,
            })
        }
    }
}

fn lower(fields: Vec<(String, String)>) -> Vec<(String, String)> {
    fields.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}
