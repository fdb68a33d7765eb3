//! What needs no istiod: how it starts, what it refuses, what it says while it waits.

use super::pod::Pod;
use cairn_test_support::process::drive;
use cairn_test_support::wait::eventually;
use std::net::TcpListener;

#[test]
fn the_rendered_pod_starts_and_says_what_it_waits_for() {
    drive(async {
        let pod = Pod::new();
        pod.write("var/run/secrets/tokens/istio-token", "a-token");
        pod.write(
            "var/run/secrets/istio/root-cert.pem",
            &cairn_test_support::pki::Ca::new().root_pem(),
        );
        let mut waypoint = pod.start();
        waypoint.waits_for("certificate").await;
        let probe = waypoint.probe().await;
        for awaited in [
            "clusters (CDS)",
            "listeners (LDS)",
            "endpoints (EDS)",
            "workloads (Workload)",
            "port 15008",
        ] {
            assert!(probe.text().contains(awaited), "{awaited} in {}", probe.text());
        }
        // The reason is there, and in the log, again and again.
        waypoint.waits_for("istiod.istio-system.svc:15012").await;
        eventually("the reason is repeated", || {
            waypoint.cairn.count("not ready: waiting for") >= 2
        })
        .await;
        assert!(waypoint.cairn.is_running());
        for door in ["health", "metrics"] {
            assert_eq!(waypoint.page(door, "GET", "/healthz/ready").await.status, 503, "{door}");
        }
        for door in ["metrics", "prometheus"] {
            let page = waypoint.page(door, "GET", "/stats/prometheus").await;
            assert!(page.text().contains("istio_build"), "{door}");
        }
        assert_eq!(waypoint.page("admin", "GET", "/ready").await.status, 503);
        assert_eq!(waypoint.page("health", "GET", "/stats/prometheus").await.status, 404);
        assert!(
            waypoint.cairn.printed("waypoint~10.244.1.10~waypoint-1.plain~plain.svc.cluster.local")
        );
        waypoint.cairn.terminate();
        assert!(waypoint.cairn.wait().await.success());
    });
}

#[test]
fn flags_that_are_not_known_are_warned_about() {
    drive(async {
        let mut pod = Pod::new();
        pod.args.extend(["--newFlag", "value", "--outlierLogPath=/dev/stdout"].map(str::to_owned));
        let waypoint = pod.start();
        waypoint.waits_for("certificate").await;
        assert!(waypoint.cairn.printed("--newFlag is not known"));
        assert!(waypoint.cairn.printed("--outlierLogPath has no effect"));
    });
}

#[test]
fn a_pod_without_its_gateway_is_refused() {
    drive(async {
        let pod = Pod::new();
        pod.write("etc/istio/pod/labels", "app=\"waypoint\"\n");
        let mut waypoint = pod.start();
        assert_eq!(waypoint.cairn.wait().await.code(), Some(1));
        eventually("it says why", || {
            waypoint.cairn.printed("no label gateway.networking.k8s.io/gateway-name")
        })
        .await;
    });
}

#[test]
fn what_cannot_be_used_is_named() {
    drive(async {
        for (name, value, said) in [
            ("POD_NAME", "", "POD_NAME is not set"),
            ("INSTANCE_IP", "nowhere", "nowhere"),
            ("PROXY_CONFIG", "[", "PROXY_CONFIG"),
            ("CAIRN_PORTS", "15008", "CAIRN_PORTS"),
            ("CAIRN_RESOLVE", "x", "CAIRN_RESOLVE"),
        ] {
            let mut pod = Pod::new();
            pod.set(name, value);
            let mut waypoint = pod.start();
            assert_eq!(waypoint.cairn.wait().await.code(), Some(1), "{name}");
            eventually(&format!("{name} is named"), || waypoint.cairn.printed(said)).await;
        }
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut pod = Pod::new();
        pod.set("CAIRN_PORTS", &format!("15021={}", taken.local_addr().unwrap()));
        let mut waypoint = pod.start();
        assert_eq!(waypoint.cairn.wait().await.code(), Some(1));
        eventually("the port is named", || waypoint.cairn.printed("CAIRN_PORTS=15021=PORT")).await;
    });
}

#[test]
fn quit_from_this_machine_ends_it() {
    drive(async {
        let mut waypoint = Pod::new().start();
        waypoint.waits_for("certificate").await;
        assert_eq!(waypoint.page("metrics", "GET", "/quitquitquit").await.status, 405);
        assert!(waypoint.cairn.is_running());
        assert_eq!(waypoint.page("metrics", "POST", "/quitquitquit").await.status, 200);
        assert!(waypoint.cairn.wait().await.success());
    });
}

#[test]
fn runbooks_ask_the_admin_port() {
    drive(async {
        let waypoint = Pod::new().start();
        let port = waypoint.address("admin pages").await.port().to_string();
        let words = ["pilot-agent", "request", "--debug-port", &port, "GET", "stats/prometheus"];
        let mut request = cairn_test_support::process::Cairn::start(&words);
        assert!(request.wait().await.success());
        eventually("the page is printed", || request.printed("istio_build")).await;
        let words = ["pilot-agent", "request", "--debug-port", &port, "GET", "ready"];
        let mut request = cairn_test_support::process::Cairn::start(&words);
        assert_eq!(request.wait().await.code(), Some(1));
        eventually("the body is printed", || request.printed("waiting for certificate")).await;
    });
}

#[test]
fn ipv6_pods_listen_on_ipv6() {
    drive(async {
        if TcpListener::bind("[::1]:0").is_err() {
            eprintln!("skipped: this machine has no IPv6");
            return;
        }
        let mut pod = Pod::new();
        pod.set("INSTANCE_IP", "fd00::17");
        pod.listen_on("[::1]");
        let waypoint = pod.start();
        waypoint.waits_for("certificate").await;
        assert!(waypoint.address("health pages").await.is_ipv6());
        assert!(
            waypoint.cairn.printed("waypoint~fd00::17~waypoint-1.plain~plain.svc.cluster.local")
        );
    });
}
