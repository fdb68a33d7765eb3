//! What is in the root filesystem.

use crate::elf::Elf;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Largest root filesystem, bytes; of what is fetched, less than half.
const MAX_BYTES: u64 = 40 * 1024 * 1024;
/// The program.
const PROGRAM: &str = "usr/local/bin/cairn";
/// Everything that is no directory.
const FILES: [&str; 8] = [
    "etc/group",
    "etc/nsswitch.conf",
    "etc/passwd",
    "etc/ssl/certs/ca-certificates.crt",
    "licenses/LICENSE",
    "licenses/THIRD-PARTY",
    PROGRAM,
    "usr/local/bin/pilot-agent",
];
/// Where istiod's template mounts something.
const MOUNT_POINTS: [&str; 6] = [
    "etc/istio/pod",
    "etc/istio/proxy",
    "var/lib/istio/data",
    "var/run/secrets/istio",
    "var/run/secrets/tokens",
    "var/run/secrets/workload-spiffe-uds",
];

/// Where it is.
///
/// # Errors
/// When it is not there: what makes it.
pub fn find(target: &Path) -> Result<PathBuf, String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let image = std::env::var_os("CAIRN_ROOTFS")
        .map_or_else(|| target.join("image").join(arch).join("rootfs"), PathBuf::from);
    match image.join(PROGRAM).is_file() {
        true => Ok(image),
        false => Err(format!(
            "no root filesystem at {}: deploy/image/rootfs.sh --profile release makes it",
            image.display()
        )),
    }
}

/// Paths of everything below it.
fn all(image: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![image.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                open.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

fn text(image: &Path, path: &str) -> String {
    fs::read_to_string(image.join(path)).unwrap()
}

/// Files, directories for mounts, size.
pub fn are_few(image: &Path) {
    let mut files = BTreeSet::new();
    let mut bytes = 0;
    for path in all(image) {
        let found = path.symlink_metadata().unwrap();
        if !found.is_dir() {
            bytes += if found.is_file() { found.len() } else { 0 };
            files.insert(path.strip_prefix(image).unwrap().to_str().unwrap().to_owned());
        }
    }
    assert_eq!(files, FILES.map(str::to_owned).into());
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
    println!("{bytes} bytes");
    for directory in MOUNT_POINTS {
        assert!(image.join(directory).is_dir(), "{directory}");
    }
    assert_eq!(fs::read_link(image.join("usr/local/bin/pilot-agent")).unwrap(), Path::new("cairn"));
    assert!(text(image, "etc/passwd").contains("\ncairn:x:1337:1337:"));
    assert!(text(image, "etc/group").contains("\ncairn:x:1337:"));
    let roots = text(image, "etc/ssl/certs/ca-certificates.crt");
    let count = roots.matches("-----BEGIN CERTIFICATE-----").count();
    assert!(count > 50, "{count} roots");
}

/// Modes: nothing is for others to write, or has more rights than who runs it.
pub fn are_locked(image: &Path) {
    for path in all(image) {
        let found = path.symlink_metadata().unwrap();
        if found.is_symlink() {
            continue;
        }
        let inside = path.strip_prefix(image).unwrap();
        let expected = match inside.to_str().unwrap() {
            "tmp" => 0o1777,
            PROGRAM => 0o755,
            _ if found.is_dir() => 0o755,
            _ => 0o644,
        };
        assert_eq!(found.permissions().mode() & 0o7777, expected, "{}", inside.display());
    }
}

/// The program's own headers.
pub fn are_static(image: &Path) {
    let program = fs::read(image.join(PROGRAM)).unwrap();
    let elf = Elf::read(&program).unwrap();
    assert_eq!(elf.machine, std::env::consts::ARCH);
    assert!(!elf.interpreter, "it needs a loader");
    assert_eq!(elf.needed, 0, "it needs libraries");
    assert!(!elf.symbols, "it is not stripped");
    // And this test can tell.
    let ours = fs::read(std::env::current_exe().unwrap()).unwrap();
    let ours = Elf::read(&ours).unwrap();
    assert!(ours.interpreter && ours.needed > 0 && ours.symbols, "{ours:?}");
    let built_at = crate::repository().canonicalize().unwrap();
    for path in [built_at.to_str().unwrap(), "/.cargo/registry"] {
        let found = program.windows(path.len()).any(|window| window == path.as_bytes());
        assert!(!found, "it tells where it was built: {path}");
    }
}

/// Of Cairn and of what it is made of.
pub fn have_licences(image: &Path) {
    assert!(text(image, "licenses/LICENSE").contains("Apache License"));
    let others = text(image, "licenses/THIRD-PARTY");
    let parts = [
        "\npingora-core ",
        "\ntokio ",
        "\nThe GNU C Library, linked statically\n",
        "GNU LESSER GENERAL PUBLIC LICENSE",
        "Permission is hereby granted, free of charge",
        "jemalloc/COPYING\n",
    ];
    for part in parts {
        assert!(others.contains(part), "{part}");
    }
}
