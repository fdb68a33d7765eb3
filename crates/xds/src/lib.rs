//! Where the configuration comes from.
//!
//! [`mod@file`] reads meshes from YAML or JSON, a file or a directory, and follows changes. What it
//! yields is plain data ([`cairn_router::spec`]); compiling and publishing are the caller's, so
//! that another source can stand beside it and feed the same compiler.
#![forbid(unsafe_code)]

pub mod ads;
pub mod feed;
pub mod file;
pub mod store;
pub mod translate;

pub use file::{
    AdminConfig, Bandwidth, Config, DevIdentity, DrainConfig, FileError, FileIdentity, FileSource,
    Format, IdentityConfig, Limits, LoadConfig, MeshConfig, Placement, Position, parse_bytes,
    summary,
};
