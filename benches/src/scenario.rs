//! What is measured under load.

use crate::load::{Lifetime, LoadArgs, Speak};
use crate::world::World;

/// One kind of traffic.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Name on the command line and in reports.
    pub name: &'static str,
    /// In words.
    pub about: &'static str,
    /// CPU per request as a share of Envoy's that is to be reached.
    pub goal: Option<f64>,
    service: &'static str,
    speak: Speak,
    lifetime: Lifetime,
    connections: usize,
    tunnels: usize,
    streams: usize,
    rate: u32,
    request_bytes: usize,
    response_bytes: usize,
}

const SMALL: Scenario = Scenario {
    name: "h1-small",
    about: "HTTP/1.1, 64 bytes back, 4 connections of 8 tunnels",
    goal: Some(0.38),
    service: "app",
    speak: Speak::Http1,
    lifetime: Lifetime::Keep,
    connections: 4,
    tunnels: 8,
    streams: 1,
    rate: 0,
    request_bytes: 0,
    response_bytes: 64,
};

/// All of them, in the order in which they are measured.
pub const SCENARIOS: [Scenario; 13] = [
    SMALL,
    Scenario {
        name: "h1-1k",
        about: "the same with 1 KiB back",
        goal: Some(0.45),
        response_bytes: 1 << 10,
        ..SMALL
    },
    Scenario {
        name: "h1-64k",
        about: "the same with 64 KiB back",
        goal: Some(0.50),
        response_bytes: 64 << 10,
        ..SMALL
    },
    Scenario {
        name: "h1-post-16k",
        about: "the same with 16 KiB there and 64 bytes back",
        goal: Some(0.45),
        request_bytes: 16 << 10,
        ..SMALL
    },
    Scenario {
        name: "h2c-small",
        about: "unary gRPC, HTTP/2 in the tunnels of both sides, 4 connections of 2 tunnels of 4 calls",
        goal: Some(0.38),
        service: "echo",
        speak: Speak::H2c,
        tunnels: 2,
        streams: 4,
        request_bytes: 16,
        ..SMALL
    },
    Scenario {
        name: "churn",
        about: "a CONNECT for each request, 4 connections of 8 tunnels",
        goal: Some(0.30),
        lifetime: Lifetime::Churn,
        ..SMALL
    },
    Scenario {
        name: "reconnect",
        about: "a TLS handshake for each request, 8 at once",
        goal: Some(0.45),
        lifetime: Lifetime::Reconnect,
        tunnels: 2,
        ..SMALL
    },
    Scenario {
        name: "single",
        about: "one request at a time",
        goal: Some(0.50),
        connections: 1,
        tunnels: 1,
        ..SMALL
    },
    Scenario {
        name: "open-1000",
        about: "1,000 requests per second, due at fixed times, 4 connections of 8 tunnels",
        goal: None,
        rate: 1000,
        ..SMALL
    },
    Scenario {
        name: "open-4000",
        about: "4,000 requests per second, due at fixed times, 4 connections of 8 tunnels",
        goal: None,
        rate: 4000,
        ..SMALL
    },
    Scenario {
        name: "l4",
        about: "TCP, 64 bytes there and back, 4 connections of 8 tunnels",
        goal: Some(0.30),
        service: "ledger",
        speak: Speak::Echo,
        request_bytes: 64,
        ..SMALL
    },
    Scenario {
        name: "spread",
        about: "HTTP/1.1, 64 bytes back, 16 connections of 64 tunnels",
        goal: Some(0.28),
        connections: 16,
        tunnels: 64,
        ..SMALL
    },
    Scenario {
        name: "h1-plain",
        about: "as h1-small, to a pod outside of the mesh",
        goal: None,
        service: "outside",
        ..SMALL
    },
];

/// One hot connection, on two cores and on one.
pub const HOT: Scenario = Scenario {
    name: "hot",
    about: "one connection of 64 tunnels, on two cores and on one",
    goal: None,
    connections: 1,
    tunnels: 64,
    ..SMALL
};

impl Scenario {
    /// Its load, on the services of [`World::traffic`].
    pub fn apply(&self, world: &World, args: LoadArgs) -> LoadArgs {
        let Scenario {
            name: _,
            about: _,
            goal: _,
            service,
            speak,
            lifetime,
            connections,
            tunnels,
            streams,
            rate,
            request_bytes,
            response_bytes,
        } = *self;
        let to = world.services.iter().filter(|known| known.name == service);
        LoadArgs {
            to: to.map(|service| service.address().to_string()).collect(),
            speak,
            lifetime,
            connections,
            tunnels,
            streams,
            rate,
            request_bytes,
            response_bytes,
            ..args
        }
    }

    /// Whether CPU per request is what counts: not where the proxy is mostly idle.
    pub fn is_open_loop(&self) -> bool {
        self.rate > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddr};

    #[test]
    fn each_has_a_name_and_a_service() {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
        let world = World::traffic(address, address);
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        for scenario in SCENARIOS.iter().chain([&HOT]) {
            let args = scenario.apply(&world, LoadArgs::new(address, String::new()));
            assert_eq!(args.to.len(), 1, "{}", scenario.name);
        }
    }
}
