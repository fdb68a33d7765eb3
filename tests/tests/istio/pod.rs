//! The waypoint's pod, and the container in it.

pub use cairn_test_support::pod::{Pod, Waypoint};
