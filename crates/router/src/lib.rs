//! The L7 router and policy engine as pure functions.
pub mod spec;
