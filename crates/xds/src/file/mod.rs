//! Configuration from files.
//!
//! Bytes → `tree` with positions → `document` (what one file holds) → merged [`Config`]. JSON skips
//! the tree while nothing is wrong with it. Whatever is wrong is said as a [`FileError`]: file, line,
//! field, expectation. [`FileSource`] follows changes and keeps the last good [`Config`] while a file
//! is broken.

mod check;
mod config;
mod de;
mod document;
mod error;
mod json;
mod merge;
mod parse;
mod read;
mod summary;
mod tree;
mod watch;
mod yaml;

pub use config::{
    AdminConfig, Bandwidth, Config, DevIdentity, DrainConfig, FileIdentity, IdentityConfig, Limits,
    LoadConfig, MeshConfig, Placement,
};
pub use error::{FileError, Position};
pub use parse::{Format, parse_bytes};
pub use read::{MAX_FILES, MAX_JSON_BYTES, MAX_TOTAL_BYTES, MAX_YAML_BYTES};
pub use summary::summary;
pub use watch::FileSource;
pub use yaml::{MAX_ALIASED_BYTES, MAX_YAML_VALUES};
