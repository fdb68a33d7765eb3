//! What another member tells: whatever it is, it is taken as a whole or not at all, and never holds keys.
#![no_main]

use cairn_xds::feed::Kind;
use cairn_xds::store::{ImportLimits, Owner, Store};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let owner = Owner {
        node: "pool member".to_owned(),
        cluster: "a".to_owned(),
        identity: "spiffe://cluster.local/ns/waypoint-pool/sa/waypoint-pool".to_owned(),
    };
    let store = Store::new();
    match store.import_bytes(data.to_vec(), "a sibling", &owner, ImportLimits::default()) {
        Ok(_) => assert_eq!(store.len(Kind::Secret), 0),
        Err(_) => assert!(store.is_empty()),
    }
});
