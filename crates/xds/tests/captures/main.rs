//! Recorded pushes of a real istiod: all of them are understood or fail closed, none is refused.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod recording;
mod table;
mod themes;
mod updates;
