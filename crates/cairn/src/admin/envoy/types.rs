//! What Envoy's and Istio's messages look like, so that they can be printed.
//!
//! `types.bin` is a compressed `FileDescriptorSet` with the messages of the `envoy-types` crate and
//! those in `crates/proto/proto` and `proto`, without comments, options and services. A test compares it with
//! its sources; `CAIRN_UPDATE_TYPES=1 cargo test -p cairn types` makes it anew.
//!
//! The descriptors need several MiB once they are read, so they are there only while somebody holds
//! them.

use parking_lot::Mutex;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use std::sync::{Arc, Weak};

/// `FileDescriptorSet`, compressed (zlib).
const COMPRESSED: &[u8] = include_bytes!("types.bin");
/// Bound of the descriptors in bytes.
const MAX_BYTES: usize = 16 << 20;

/// Fields with secrets (in Envoy's sources: `(udpa.annotations.sensitive) = true`).
const SENSITIVE: &str = include_str!("sensitive.txt");

/// The messages that are known.
pub struct Types {
    pool: DescriptorPool,
}

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TypeError {
    /// Not one of the messages that are known.
    #[error("the type `{0}` is not known")]
    Unknown(String),
    /// Its bytes are no such message.
    #[error("no `{name}`: {source}")]
    Malformed {
        /// The type's full name.
        name: String,
        /// What the decoder says.
        source: cairn_proto::prost::DecodeError,
    },
}

impl Types {
    /// The same ones for all who hold them at a time. Takes some 10 ms if nobody does.
    pub fn load() -> Arc<Types> {
        static SHARED: Mutex<Weak<Types>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(types) = shared.upgrade() {
            return types;
        }
        let types = Arc::new(Types { pool: read(COMPRESSED) });
        *shared = Arc::downgrade(&types);
        types
    }

    /// The message with this full name, such as `envoy.admin.v3.Clusters`.
    pub fn message(&self, full_name: &str) -> Option<MessageDescriptor> {
        self.pool.get_message_by_name(full_name)
    }

    /// Reads a message of the type that `type_url` ends in.
    pub fn decode(&self, type_url: &str, body: &[u8]) -> Result<DynamicMessage, TypeError> {
        let name = full_name(type_url);
        let message = self.message(name).ok_or_else(|| TypeError::Unknown(name.to_owned()))?;
        DynamicMessage::decode(message, body)
            .map_err(|source| TypeError::Malformed { name: name.to_owned(), source })
    }
}

/// The part of a type URL after the last slash.
pub fn full_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Whether the field with this full name holds a secret.
pub fn is_sensitive(field: &str) -> bool {
    SENSITIVE.lines().any(|line| line == field)
}

/// The file is part of the program; without it nothing is known, and all messages are printed as bytes.
fn read(compressed: &[u8]) -> DescriptorPool {
    miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(compressed, MAX_BYTES)
        .ok()
        .and_then(|bytes| DescriptorPool::decode(bytes.as_slice()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
