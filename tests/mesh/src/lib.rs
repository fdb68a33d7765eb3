//! A real mesh on one machine, for tests: etcd, kube-apiserver and istiod as processes in a network
//! namespace, pods that are listeners on their pods' addresses, and waypoints that run as istiod
//! renders them.
//!
//! Nothing here is a fake control plane; only kubelet, ztunnel and the applications are played.
//! Helpers panic where a test could not go on anyway; the panic says what was expected.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // a failed helper is a failed test

pub mod admission;
pub mod ads;
pub mod api;
pub mod control;
pub mod crowd;
pub mod definitions;
pub mod deployments;
pub mod grpc;
pub mod guide;
pub mod harness;
pub mod hbone;
pub mod identity;
pub mod image;
pub mod keys;
pub mod kube;
pub mod kubelet;
pub mod lab;
pub mod load;
pub mod manifest;
pub mod member;
pub mod namespace;
pub mod node;
pub mod objects;
pub mod outer;
pub mod part;
pub mod played;
pub mod program;
pub mod sandbox;
pub mod site;
pub mod steps;
pub mod tool;
pub mod view;
pub mod waypoint;
pub mod yaml;
pub mod ztunnel;
