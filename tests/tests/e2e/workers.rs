//! Several threads, and tunnels that run on another one than their connection.

use cairn_test_support::app::{Behaviour, TcpApp};
use cairn_test_support::config::{MeshSpec, all_to, hbone};
use cairn_test_support::h2c::H2c;
use cairn_test_support::http1::Http1;
use cairn_test_support::pki::CertDir;
use cairn_test_support::stage::{Stage, TCP_VIP, VIP, app_id};
use cairn_test_support::wait::{drive, within};
use cairn_test_support::waypoint::Process;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn tunnels_are_served_on_any_thread() {
    drive(async {
        for process in [Process::start(3), Process::start_spread(3)] {
            let stage = Stage::new().await;
            let app = TcpApp::new(Behaviour::Echo);
            let pod = stage.pod(&app).await;
            let spec: MeshSpec = stage
                .spec()
                .http(VIP, all_to("app"))
                .cluster("tcp", vec![hbone(&pod, "10.1.0.2:9000", &app_id())])
                .tcp(TCP_VIP, "tcp");
            let certs = CertDir::plain(&stage.ca.workload("shop", "waypoint"));
            let waypoint = process.add(certs, &spec).await;
            let mut clients = Vec::new();
            for _ in 0..4 {
                clients.push(waypoint.connect(&stage.client()).await);
            }
            let work =
                clients.iter().flat_map(|client| (0..12).map(move |number| (client, number)));
            join_all(work.map(|(client, number)| async move {
                match number % 3 {
                    0 => {
                        let mut http = Http1::new(client.open(VIP).await.unwrap());
                        for _ in 0..5 {
                            let response = http.get("/bytes?n=200000").await.unwrap();
                            assert_eq!(response.body.len(), 200_000);
                        }
                    }
                    1 => {
                        let h2c = H2c::connect(client.open(VIP).await.unwrap()).await.unwrap();
                        let gets = join_all((0..5).map(|_| h2c.get("/bytes?n=200000"))).await;
                        assert!(gets.iter().all(|got| got.as_ref().unwrap().body.len() == 200_000));
                    }
                    _ => {
                        let mut tunnel = client.open(TCP_VIP).await.unwrap();
                        for round in 0..5u8 {
                            tunnel.write_all(&[round; 50_000]).await.unwrap();
                            let mut echo = vec![0; 50_000];
                            within("the echo", tunnel.read_exact(&mut echo)).await.unwrap();
                            assert_eq!(echo, [round; 50_000]);
                        }
                    }
                }
            }))
            .await;
            // A pool for each worker, and nothing beyond it.
            assert!(stage.pod.connections() <= 3, "{}", stage.pod.connections());
        }
    });
}
