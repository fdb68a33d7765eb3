//! `pool.yaml` as a value: what is taken names every cluster by one name and one port, and every node has the label by
//! which its policies are found.
#![no_main]

use cairn_pool::PoolConfig;
use cairn_pool::cluster::GATEWAY_NAME;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;

fuzz_target!(|data: &[u8]| {
    let Ok(document) = serde_json::from_slice(data) else { return };
    match PoolConfig::of(document) {
        Ok(config) => {
            let names: BTreeSet<&str> =
                config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            assert_eq!(names.len(), config.clusters.len());
            for cluster in &config.clusters {
                assert!(cluster.node_labels(&config.pool).contains_key(GATEWAY_NAME));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
