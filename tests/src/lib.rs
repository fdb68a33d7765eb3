//! End-to-end tests of Cairn live in `tests/`; this crate has no code of its own.
