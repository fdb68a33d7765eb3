//! A scaler that is killed and started again holds what there is until it knows.

use crate::support::{members, scaler_of};
use cairn_test_support::wait::drive;

#[test]
fn a_restart_under_load_never_goes_down() {
    drive(async {
        let members = members(4, 90.0).await;
        let scaler = scaler_of(&members, &[]).await;
        let before =
            scaler.until("it wants more", |decision| decision["desired"].as_u64() >= Some(7)).await;
        let before = before["desired"].as_u64().unwrap();
        drop(scaler); // SIGKILL
        let scaler = scaler_of(&members, &[]).await;
        let first = scaler.until("a decision", |decision| decision["desired"].is_u64()).await;
        assert!(first["desired"].as_u64().unwrap() >= before, "{first}");
        // More than the windows of the policy, at two decisions a second.
        for _ in 0..8 {
            scaler.decisions(2).await;
            let decision = scaler.decision().await;
            assert!(decision["desired"].as_u64().unwrap() >= before, "{before}: {decision}");
        }
    });
}

#[test]
fn a_restart_after_the_load_has_gone_holds_for_its_windows() {
    drive(async {
        let members = members(6, 0.0).await;
        let windows = "stable_window=1m,panic_window=1s,down_delay=1m,down_period=1s,min=1";
        let held = scaler_of(&members, &["--policy", windows]).await;
        for _ in 0..5 {
            held.decisions(2).await;
            assert_eq!(held.decision().await["desired"], 6);
        }
        let quick = scaler_of(&members, &["--policy", "min=1"]).await;
        quick.until("shorter windows are over", |decision| decision["desired"] == 5).await;
    });
}
