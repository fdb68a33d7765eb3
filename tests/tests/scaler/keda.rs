//! KEDA's side of it.

use crate::support::{DESIRED, Keda, PRESSURE, members, scaled, scaler_of};
use cairn_proto::externalscaler::GetMetricsRequest;
use cairn_proto::tonic::client::Grpc;
use cairn_proto::tonic::codegen::http::uri::PathAndQuery;
use cairn_proto::tonic::{Code, Request};
use cairn_test_support::member::Manner;
use cairn_test_support::wait::{drive, eventually_async, within};

#[test]
fn the_value_follows_the_load() {
    drive(async {
        let members = members(3, 20.0).await;
        let scaler = scaler_of(&members, &["--policy", "min=2,max=9"]).await;
        let mut keda = Keda::of(&scaler).await;
        let spec = keda.client.get_metric_spec(scaled("waypoint-pool")).await.unwrap().into_inner();
        let spec: Vec<(&str, i64, f64)> = spec
            .metric_specs
            .iter()
            .map(|spec| (spec.metric_name.as_str(), spec.target_size, spec.target_size_float))
            .collect();
        assert_eq!(spec, [(DESIRED, 1, 1.0), (PRESSURE, 60, 60.0)]);

        // 0.6 units are one member's target, with headroom of half of it: two.
        scaler
            .until("a calm decision", |decision| {
                decision["desired"] == 2 || decision["desired"] == 3
            })
            .await;
        let mut value = 0.0;
        eventually_async("KEDA is told to go down", async || {
            value = keda.value(DESIRED).await.unwrap();
            value == 2.0
        })
        .await;
        let mut pressure = 0.0;
        eventually_async("the pressure is that of three members", async || {
            pressure = keda.value(PRESSURE).await.unwrap();
            (59.0..61.0).contains(&pressure)
        })
        .await;

        for member in &members {
            member.works(|work| work.in_flight = 90.0);
        }
        eventually_async("KEDA is told to go up", async || {
            keda.value(DESIRED).await.unwrap() >= 6.0
        })
        .await;
        for member in &members {
            member.works(|work| work.in_flight = 900.0);
        }
        eventually_async("and not above the ceiling", async || {
            keda.value(DESIRED).await.unwrap() == 9.0
        })
        .await;
        assert!(scaler.count("cairn_scaler_keda_answers_total", &[]).await > 3.0);
    });
}

#[test]
fn members_beside_the_target_are_not_asked_of_it() {
    drive(async {
        let members = members(4, 90.0).await;
        let fixed = ["--fixed", "3", "--policy", "min=2,max=7"];
        let scaler = scaler_of(&members, &fixed).await;
        let mut keda = Keda::of(&scaler).await;
        // 3.6 units are six members, and headroom is one more at least: seven, of which three are there.
        let decision = scaler.until("all seven", |decision| decision["desired"] == 7).await;
        assert_eq!((&decision["fixed"], &decision["desired_of_target"]), (&3.into(), &4.into()));
        assert_eq!(keda.value(DESIRED).await.unwrap(), 4.0);
        for (name, value) in [
            ("cairn_scaler_desired_replicas", 4.0),
            ("cairn_scaler_current_replicas", 1.0),
            ("cairn_scaler_desired_members", 7.0),
            ("cairn_scaler_fixed_members", 3.0),
            ("cairn_scaler_max_members", 7.0),
        ] {
            assert_eq!(scaler.count(name, &[]).await, value, "{name}");
        }
        let text = scaler.page("/decision", &[("Accept", "text/plain")]).await.text();
        assert!(text.contains("7 members are to be there, 3 of them fixed: 4 for the target"));
        let mut pressure = 0.0;
        eventually_async("the pressure is what three members leave", async || {
            pressure = keda.value(PRESSURE).await.unwrap();
            (179.0..181.0).contains(&pressure)
        })
        .await;

        for member in &members {
            member.works(|work| work.in_flight = 0.0);
        }
        scaler.until("the floor of the pool", |decision| decision["desired"] == 3).await;
        assert_eq!(keda.value(DESIRED).await.unwrap(), 1.0, "0 would turn scaling off");
        assert_eq!(keda.value(PRESSURE).await.unwrap(), 0.0);
    });
}

#[test]
fn a_stream_says_active_at_once_and_stays_open() {
    drive(async {
        let members = members(1, 0.0).await;
        let scaler = scaler_of(&members, &[]).await;
        let mut keda = Keda::of(&scaler).await;
        let mut stream =
            keda.client.stream_is_active(scaled("waypoint-pool")).await.unwrap().into_inner();
        let first = within("the first message", stream.message()).await.unwrap();
        assert!(first.unwrap().result);
        scaler.decisions(2).await;
        let more = tokio::time::timeout(std::time::Duration::ZERO, stream.message()).await;
        assert!(more.is_err(), "it is open and says nothing: {more:?}");
        scaler.process.terminate();
        let end = within("the stream ends with the scaler", stream.message()).await;
        assert!(end.is_err(), "{end:?}");
    });
}

#[test]
fn questions_for_others_are_refused_by_name() {
    drive(async {
        let members = members(1, 0.0).await;
        let scaler = scaler_of(&members, &[]).await;
        let mut keda = Keda::of(&scaler).await;
        scaler.until("a decision", |decision| decision["desired"].is_u64()).await;
        assert_eq!(keda.refusal("s0-cpu").await, Code::InvalidArgument);
        for refused in [
            keda.client.is_active(scaled("other")).await.map(drop),
            keda.client.get_metric_spec(scaled("other")).await.map(drop),
            keda.client.stream_is_active(scaled("other")).await.map(drop),
            keda.client
                .get_metrics(GetMetricsRequest {
                    scaled_object_ref: Some(scaled("other")),
                    metric_name: DESIRED.to_owned(),
                })
                .await
                .map(drop),
        ] {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::NotFound);
            assert!(
                status.message().contains("`waypoint-pool`") && status.message().contains("other")
            );
        }
        let mut nameless = scaled("x");
        nameless.scaler_metadata.clear();
        assert!(keda.client.is_active(nameless).await.unwrap().into_inner().result);
    });
}

#[test]
fn calls_of_a_later_keda_do_no_harm() {
    drive(async {
        let members = members(1, 0.0).await;
        let scaler = scaler_of(&members, &[]).await;
        let endpoint = format!("http://{}", scaler.grpc);
        let channel = cairn_proto::tonic::transport::Endpoint::from_shared(endpoint)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut raw = Grpc::new(channel.clone());
        raw.ready().await.unwrap();
        let path = PathAndQuery::from_static("/externalscaler.ExternalScaler/StreamMetricSpec");
        let codec = cairn_proto::tonic_prost::ProstCodec::<
            cairn_proto::externalscaler::ScaledObjectRef,
            cairn_proto::externalscaler::GetMetricSpecResponse,
        >::default();
        let refused =
            raw.server_streaming(Request::new(scaled("waypoint-pool")), path, codec).await;
        assert_eq!(refused.map(drop).unwrap_err().code(), Code::Unimplemented);
        let mut client =
            cairn_proto::externalscaler::external_scaler_client::ExternalScalerClient::new(channel);
        assert!(client.is_active(scaled("waypoint-pool")).await.unwrap().into_inner().result);
    });
}

#[test]
fn where_nothing_can_be_said_keda_gets_an_error() {
    drive(async {
        let members = members(3, 30.0).await;
        let scaler = scaler_of(&members, &[]).await;
        let mut keda = Keda::of(&scaler).await;
        eventually_async("a value", async || keda.value(DESIRED).await.is_ok()).await;
        for member in members.iter().take(2) {
            member.behaves(Manner::Hang);
        }
        eventually_async("one of three is too few", async || {
            matches!(keda.value(DESIRED).await, Err(status) if status.code() == Code::Unavailable
                && status.message().contains("1 of 3 members answer"))
        })
        .await;
        assert_eq!(keda.refusal(PRESSURE).await, Code::Unavailable);
        assert!(scaler.count("cairn_scaler_keda_errors_total", &[]).await >= 2.0);
        for member in &members {
            member.behaves(Manner::Report);
        }
        eventually_async("they answer again", async || keda.value(DESIRED).await.is_ok()).await;
    });
}
