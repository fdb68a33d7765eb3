//! A scaler that is killed and started again holds what there is until it knows.

use crate::support::{QUICK, Scaler, members};
use cairn_test_support::wait::drive;

#[test]
fn a_restart_under_load_never_goes_down() {
    drive(async {
        let members = members(4, 90.0).await;
        let scaler = Scaler::start(&members, &[]).await;
        let before =
            scaler.until("it wants more", |decision| decision["desired"].as_u64() >= Some(7)).await;
        let before = before["desired"].as_u64().unwrap();
        drop(scaler); // SIGKILL
        let scaler = Scaler::start(&members, &[]).await;
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
        let held = "stable_window=5s,panic_window=1s,down_delay=5s,down_period=1s,min=1";
        let scaler = Scaler::start(&members, &["--policy", held]).await;
        // At two decisions a second the windows are ten decisions.
        let mut course = Vec::new();
        while scaler.count("cairn_scaler_decisions_total", &[]).await < 8.0 {
            let decision = scaler.decision().await;
            course.extend(decision["desired"].as_u64());
        }
        assert!(course.iter().all(|desired| *desired == 6), "{QUICK}: {course:?}");
        scaler.until("and then they go", |decision| decision["desired"].as_u64() < Some(6)).await;
    });
}
