//! Settings that cannot be used are named.

use crate::support::{members, scaler_of};
use cairn_test_support::process::Cairn;
use cairn_test_support::wait::{drive, eventually};

#[test]
fn wrong_settings_end_with_the_name_of_the_field() {
    drive(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scaler.yaml");
        std::fs::write(&file, "policy:\n  min: 5\n  max: 3\n").unwrap();
        let config = format!("--config={}", file.display());
        for (args, words) in [
            (vec!["--member=a:1", "--policy=mni=3"], "no field `mni`"),
            (
                vec!["--member=a:1", "--policy=target=1.5"],
                "`target` must be more than 0 and at most 1",
            ),
            (vec!["--member=a:1", "--policy=min=0"], "`min` must be 1 or more"),
            (vec!["--member=a:1", "--policy=min"], "write FIELD=VALUE"),
            (vec!["--member=a:1", "--policy=down_delay=5"], "`down_delay`"),
            (vec!["--member=a:1", "--tenant-cap=shop=3"], "MESH/NAMESPACE=UNITS"),
            (vec!["--member=a:1", &config], "`max` must not be less than `min`"),
            (vec!["--member=a:1", "--config=/no/such.yaml"], "/no/such.yaml"),
            (
                vec!["--member=a:1", "--policy=max=3", "--fixed=3"],
                "--fixed 3 leaves nothing to the target: the policy's `max` is 3",
            ),
            (vec!["--member=a:1", "--policy=max=3", "--fixed=4"], "--policy max=5 or more"),
            (vec!["--member=a"], "write HOST:PORT"),
            (vec![], "nobody to poll"),
            (vec!["--member=a:1", "--dns=b:1"], "cannot be used with"),
            (vec!["--member=a:1", "--apply"], "--target"),
            (vec!["--member=a:1", "--poll-interval=1ms"], "must be from"),
            (vec!["--service=waypoint"], "write NAMESPACE/NAME"),
            (vec!["--service=pool/waypoint"], "no access to the Kubernetes API"),
            (vec!["--service=p/w", "--kubeconfig=/no/such"], "/no/such"),
        ] {
            let mut all: Vec<String> = vec!["scaler".to_owned()];
            all.extend(args.iter().map(|&arg| arg.to_owned()));
            all.extend(["--grpc=off".to_owned(), "--http=off".to_owned()]);
            let mut process = Cairn::start_in(&all, []);
            let status = process.wait().await;
            assert!(!status.success(), "{args:?}");
            eventually(&format!("{args:?} is answered with `{words}`"), || process.printed(words))
                .await;
        }
    });
}

#[test]
fn flags_count_more_than_the_file() {
    drive(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scaler.yaml");
        std::fs::write(&file, "policy: {min: 5, max: 8}\ntenants: {default: 2}\n").unwrap();
        let config = format!("--config={}", file.display());
        let members = members(1, 0.0).await;
        let scaler = scaler_of(&members, &[&config]).await;
        scaler.until("the file's floor", |decision| decision["desired"] == 5).await;
        drop(scaler);
        let scaler = scaler_of(&members, &[&config, "--policy", "min=6"]).await;
        scaler.until("the flag's floor", |decision| decision["desired"] == 6).await;
    });
}
