//! The program in its root.

use crate::dns;
use crate::lab::Lab;
use cairn_test_support::backend::Backend;
use cairn_test_support::config::{MeshSpec, all_to, plain};
use cairn_test_support::endpoint::Endpoint;
use cairn_test_support::hbone_client::HboneClient;
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::mesh::{Client, Mesh, TOKEN};
use cairn_test_support::pki::{Ca, CertSpec};
use cairn_test_support::pod::{Pod, Waypoint};
use cairn_test_support::process::Cairn;
use cairn_test_support::stage::{VIP, waypoint_id};
use cairn_test_support::wait::{drive, eventually, within};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;
use tokio::net::TcpStream;

/// The volumes of istiod's template that are directories of a pod.
const VOLUMES: [&str; 5] = [
    "etc/istio/pod",
    "etc/istio/proxy",
    "var/lib/istio/data",
    "var/run/secrets/istio",
    "var/run/secrets/tokens",
];
/// As kubelet writes it for `dnsPolicy: ClusterFirst`.
const RESOLV_CONF: &str = "search plain.svc.cluster.local svc.cluster.local cluster.local\n\
                           nameserver 127.0.0.1\noptions ndots:5\n";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// What runs is uid 1337 and can do nothing else.
pub fn runs_without_rights(lab: &Lab) {
    let version = lab.output("cairn", &["--version"]);
    assert!(version.status.success(), "{}", said(&version));
    assert_eq!(said(&version).trim(), format!("cairn {}", env!("CARGO_PKG_VERSION")));
    drive(async {
        let mut cairn = by_minimal_file(lab).await;
        // The root's /proc shows the same processes.
        let pid = pid_of_cairn(lab);
        let status = fs::read_to_string(lab.inside(&format!("proc/{pid}/status"))).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        let ids = fs::read_to_string(lab.inside(&format!("proc/{pid}/uid_map"))).unwrap();
        let ids: Vec<_> = ids.split_whitespace().collect();
        assert_eq!(ids, ["1337", "0", "1"], "uid there, uid here, how many");
        ends(&mut cairn).await;
    });
}

/// The only process whose program is ours.
fn pid_of_cairn(lab: &Lab) -> u32 {
    let program = |pid: &str| fs::read_link(lab.inside(&format!("proc/{pid}/exe"))).ok();
    let names = fs::read_dir(lab.inside("proc")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found = names
        .filter(|name| name.parse::<u32>().is_ok())
        .filter(|pid| program(pid).is_some_and(|program| program.ends_with("usr/local/bin/cairn")));
    found.next().unwrap().parse().unwrap()
}

async fn ends(cairn: &mut Cairn) {
    cairn.terminate();
    let status = cairn.wait().await;
    assert_eq!(status.code(), Some(0), "{:#?}", cairn.output());
}

/// Starts it with the sample that the repository has, as a ConfigMap, on its fixed ports.
async fn by_minimal_file(lab: &Lab) -> Cairn {
    let sample = crate::repository().join("config/minimal.yaml");
    fs::copy(sample, lab.volume("etc/cairn").join("minimal.yaml")).unwrap();
    proxy("/etc/cairn/minimal.yaml").await
}

async fn proxy(config: &str) -> Cairn {
    let args = ["proxy", "--config", config, "--workers", "1", "--log-format", "json"];
    let mut cairn = Cairn::start_in(&args.map(str::to_owned), []);
    eventually("cairn serves", || {
        assert!(cairn.is_running(), "{:#?}", cairn.output());
        cairn.printed("accepting HBONE")
    })
    .await;
    cairn
}

async fn page(port: u16, path: &str) -> Response {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    within(path, Http1::new(stream).get(path)).await.unwrap()
}

/// The root is read-only, /tmp included.
pub fn writes_nowhere(lab: &Lab) {
    let places = ["/", "/tmp", "/etc", "/etc/istio/proxy", "/usr/local/bin", "/var/lib/istio/data"];
    for place in places {
        let out = format!("{}/certs", place.trim_end_matches('/'));
        let output = lab.output("cairn", &["certs", "issue", "--out", &out, &waypoint_id()]);
        assert!(!output.status.success(), "{place}");
        assert!(said(&output).contains("Read-only file system"), "{place}: {}", said(&output));
    }
    // And with a volume it can.
    let volume = lab.volume("var/lib/istio/data");
    let out = "/var/lib/istio/data/certs";
    let output = lab.output("cairn", &["certs", "issue", "--out", out, &waypoint_id()]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(volume.join("certs/roots.pem").is_file());
}

/// Pages, and pilot-agent.
pub fn by_file(lab: &Lab) {
    drive(async {
        let mut cairn = by_minimal_file(lab).await;
        assert_eq!(page(15021, "/healthz/ready").await.status, 200);
        assert!(page(15020, "/stats/prometheus").await.text().contains("cairn_"));
        let asked = lab.output("pilot-agent", &["request", "GET", "/"]);
        assert!(asked.status.success(), "{}", said(&asked));
        ends(&mut cairn).await;
        let asked = lab.output("pilot-agent", &["request", "GET", "/"]);
        assert!(!asked.status.success());
        assert!(said(&asked).contains("does the proxy run in this container?"));
    });
}

/// A cluster with TLS and no `ca_file`: the image's roots are trusted, and no others; then those that are put in their
/// place.
pub fn trusts_roots(lab: &Lab) {
    drive(async {
        let ca = Ca::new();
        let app = Backend::new("tls");
        let server = ca.issue(&CertSpec::dns("app.example")).server(&["http/1.1"], false);
        let endpoint = Endpoint::tls(&app, server).await;
        let volume = lab.volume("etc/cairn");
        let waypoint = ca.workload("shop", "waypoint");
        let files = [
            ("tls.crt", &waypoint.chain_pem),
            ("tls.key", &waypoint.key_pem),
            ("ca.crt", &ca.root_pem()),
        ];
        for (name, content) in files {
            fs::write(volume.join(name), content).unwrap();
        }
        let tls = json!({ "tls": { "sni": "app.example" } });
        let identity = json!({ "files": {
            "cert": "/etc/cairn/tls.crt", "key": "/etc/cairn/tls.key", "roots": "/etc/cairn/ca.crt",
        } });
        let mesh = MeshSpec::new()
            .http(VIP, all_to("app"))
            .cluster_with("app", tls, vec![plain(endpoint.addr)])
            .mesh(json!({ "identity": identity }));
        let config = json!({ "meshes": [mesh] });
        fs::write(volume.join("config.json"), config.to_string()).unwrap();

        let client = ca.workload("web", "client");
        let get = async || {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15008));
            let hbone = HboneClient::connect(to, &client, &waypoint_id()).await.unwrap();
            let tunnel = within("CONNECT", hbone.open(VIP)).await.unwrap();
            within("GET", Http1::new(tunnel).get("/")).await.unwrap()
        };
        let mut cairn = proxy("/etc/cairn/config.json").await;
        let refused = get().await;
        assert_eq!(refused.status, 503);
        // It is not that there are none: that says `no CA is trusted`.
        assert!(refused.text().contains("remote connection failure"), "{}", refused.text());
        ends(&mut cairn).await;

        let bundle = volume.join("roots.pem");
        fs::write(&bundle, ca.root_pem()).unwrap();
        lab.bind(&bundle, "etc/ssl/certs/ca-certificates.crt");
        let mut cairn = proxy("/etc/cairn/config.json").await;
        let answered = get().await;
        assert_eq!((answered.status, answered.backend()), (200, "tls"));
        ends(&mut cairn).await;
    });
}

/// The pod that istiod renders, with its fixed ports and istiod's own name.
fn rendered(lab: &Lab, token: &str, roots: &str) -> Pod {
    let mut pod = Pod::new();
    for variable in ["CAIRN_ROOT", "CAIRN_PORTS", "CAIRN_RESOLVE"] {
        pod.vars.remove(variable);
    }
    pod.write("var/run/secrets/tokens/istio-token", token);
    pod.write("var/run/secrets/istio/root-cert.pem", roots);
    for volume in VOLUMES {
        lab.bind(&pod.path(volume), volume);
    }
    pod
}

/// By DNS to istiod; a request of a client; everything at the ports that the template names.
pub fn by_istiod(lab: &Lab) {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
    dns::serve(server, "istiod.istio-system.svc.cluster.local", Ipv4Addr::LOCALHOST);
    lab.kubelet("resolv.conf", RESOLV_CONF);
    drive(async {
        let mesh = Mesh::with(&["app"]).await;
        let mut pod = rendered(lab, TOKEN, &mesh.istiod.roots_pem());
        let port = mesh.istiod.address().port();
        pod.set("CA_ADDR", &format!("istiod.istio-system.svc:{port}"));
        pod.set("CAIRN_LOOPBACK_ENDPOINTS", "on");
        let mut waypoint = pod.start();
        waypoint.ready().await;
        assert_eq!(page(15021, "/healthz/ready").await.status, 200);
        let hbone = SocketAddr::from((Ipv4Addr::LOCALHOST, 15008));
        let client = Client::connect(hbone, &mesh.cert("client")).await;
        assert_eq!(mesh.get(&client, "app", "/").await.status, 200);
        let info = lab.output("pilot-agent", &["request", "GET", "server_info"]);
        assert!(info.status.success(), "{}", said(&info));
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        assert!(info["version"].as_str().unwrap().contains("cairn/"), "{info}");
        let config = lab.output("pilot-agent", &["request", "GET", "config_dump"]);
        assert!(said(&config).contains("app.plain.svc.cluster.local"));
        // What it keeps for its next start is in its volume.
        let data = pod.path("var/lib/istio/data");
        eventually("the configuration is kept", || has_files(&data)).await;
        drop(client);
        ends(&mut waypoint.cairn).await;
    });
}

fn has_files(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_some()
}

/// What it says of an istiod that is not there; names are looked up in /etc/hosts, then in DNS.
pub fn without_istiod(lab: &Lab) {
    drive(async {
        let pod = rendered(lab, TOKEN, &Ca::new().root_pem());
        let absent = async |expected: &str| {
            let mut waypoint = pod.start();
            waypoint.waits_for(expected).await;
            stop(&mut waypoint).await;
        };
        // resolv.conf is empty.
        absent("istiod.istio-system.svc:15012: the name cannot be resolved").await;
        lab.kubelet("hosts", "127.0.0.1 localhost\n127.0.0.9 istiod.istio-system.svc\n");
        absent("127.0.0.9:15012").await;
    });
}

async fn stop(waypoint: &mut Waypoint) {
    assert!(waypoint.cairn.is_running());
    ends(&mut waypoint.cairn).await;
}
