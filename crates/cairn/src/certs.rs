//! `cairn certs`: certificates for development, and what a certificate says.

use crate::cli::{CertsArgs, CertsCommand, IssueArgs};
use crate::failure::Failure;
use crate::terminal;
use cairn_identity::SpiffeId;
use cairn_identity::dev::{DevCa, IssueOptions, PemBundle};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Longest file that `show` reads.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Does what the arguments say.
pub fn run(args: &CertsArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        CertsCommand::Issue(args) => terminal::text(issue(args)?),
        CertsCommand::Show { file } => terminal::text(show(file)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// The files of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM, readable for its owner only.
    pub key: PathBuf,
    /// Trusted CAs, PEM.
    pub roots: PathBuf,
}

impl IdentityFiles {
    /// Where [`write_identity`] puts them.
    pub fn of(dir: &Path, id: &SpiffeId) -> Self {
        let name = format!("{}.{}", id.namespace(), id.service_account());
        IdentityFiles {
            cert: dir.join(format!("{name}.cert.pem")),
            key: dir.join(format!("{name}.key.pem")),
            roots: dir.join("roots.pem"),
        }
    }
}

/// Writes chain, key and roots of one identity into a directory.
pub fn write_identity(dir: &Path, id: &SpiffeId, bundle: &PemBundle) -> io::Result<IdentityFiles> {
    let files = IdentityFiles::of(dir, id);
    write(&files.roots, bundle.roots.as_bytes(), 0o644)?;
    write(&files.cert, bundle.cert_chain.as_bytes(), 0o644)?;
    write(&files.key, bundle.key.as_bytes(), 0o600)?;
    Ok(files)
}

/// Writes the files, and says which.
fn issue(args: &IssueArgs) -> Result<String, Failure> {
    let IssueArgs { ids, out, ttl } = args;
    let ids = ids
        .iter()
        .map(|id| {
            SpiffeId::parse(id).map_err(|error| {
                Failure::new(format!("{id}: {error}"))
                    .hint("write spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut names = BTreeSet::new();
    for id in &ids {
        if !names.insert(IdentityFiles::of(out, id).cert) {
            return Err(Failure::new(format!(
                "{id}: another identity has the same namespace and account, and so the same files"
            )));
        }
    }
    let Some(first) = ids.first() else { return Ok(String::new()) };
    let ca = DevCa::new(first.trust_domain()).map_err(Failure::new)?;
    std::fs::create_dir_all(out)
        .map_err(|error| Failure::new(format!("{}: {error}", out.display())))?;
    let mut text = String::new();
    for id in &ids {
        let options = IssueOptions { ttl: *ttl, ..IssueOptions::default() };
        let bundle = ca.issue_pem(id, options).map_err(Failure::new)?;
        let files = write_identity(out, id, &bundle)
            .map_err(|error| Failure::new(format!("{}: {error}", out.display())))?;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{id}\n  {}\n  {}", files.cert.display(), files.key.display());
    }
    let _ = writeln!(text, "trusted by whoever has\n  {}", out.join("roots.pem").display());
    Ok(text)
}

/// Replaces a file in one step: a reader, such as the watch of a running proxy, never sees half of it.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let part = path.with_extension("part");
    // What a broken-off run left may have other permissions.
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}

/// What the certificates of a file say, in the order of the file.
fn show(file: &Path) -> Result<String, Failure> {
    let wrong = |why: &dyn fmt::Display| Failure::new(format!("{}: {why}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| wrong(&error))?.len();
    if size > MAX_FILE_BYTES {
        return Err(wrong(&"longer than 1 MiB, so hardly a file with certificates"));
    }
    let pem = std::fs::read(file).map_err(|error| wrong(&error))?;
    let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&format!("damaged PEM: {error:?}")))?;
    if certificates.is_empty() {
        return Err(wrong(&"there is no certificate in it")
            .hint("a certificate starts with -----BEGIN CERTIFICATE-----"));
    }
    let mut text = String::new();
    for (index, der) in certificates.iter().enumerate() {
        let number = index + 1;
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| wrong(&format!("certificate {number}: {error}")))?;
        describe(&mut text, number, certificates.len(), &certificate)
            .map_err(|error| wrong(&error))?;
    }
    Ok(text)
}

fn describe(
    out: &mut String,
    number: usize,
    count: usize,
    certificate: &X509Certificate<'_>,
) -> fmt::Result {
    writeln!(out, "certificate {number} of {count}")?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    for name in names {
        match name {
            GeneralName::URI(uri) if SpiffeId::parse(uri).is_ok() => {
                writeln!(out, "  identity  {uri}")?;
            }
            GeneralName::URI(uri) => writeln!(out, "  URI       {uri}")?,
            GeneralName::DNSName(name) => writeln!(out, "  DNS name  {name}")?,
            other => writeln!(out, "  name      {other}")?,
        }
    }
    let subject = certificate.subject().to_string();
    if !subject.is_empty() {
        writeln!(out, "  subject   {subject}")?;
    }
    writeln!(out, "  issuer    {}", certificate.issuer())?;
    writeln!(out, "  serial    {}", certificate.raw_serial_as_string())?;
    let validity = certificate.validity();
    writeln!(out, "  from      {}", validity.not_before)?;
    let left = validity.time_to_expiration().map(|left| left.whole_minutes());
    let left = match left {
        Some(minutes) => format!("{} h {} min left", minutes / 60, minutes % 60),
        None => "NOT VALID NOW".to_owned(),
    };
    writeln!(out, "  until     {} ({left})", validity.not_after)?;
    let mut uses = Vec::new();
    if certificate.is_ca() {
        uses.push("CA");
    }
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        for (there, name) in [
            (usage.value.server_auth, "server"),
            (usage.value.client_auth, "client"),
            (usage.value.any, "any"),
        ] {
            if there {
                uses.push(name);
            }
        }
    }
    writeln!(
        out,
        "  use       {}",
        if uses.is_empty() { "not said".to_owned() } else { uses.join(", ") }
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn args(ids: &[&str], out: &Path) -> IssueArgs {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        IssueArgs { ids, out: out.to_owned(), ttl: Duration::from_secs(7200) }
    }

    #[test]
    fn what_is_issued_can_be_shown_and_used() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = ("spiffe://td/ns/shop/sa/web", "spiffe://td/ns/shop/sa/waypoint");
        issue(&args(&[a, b], dir.path())).unwrap();
        let files = IdentityFiles::of(dir.path(), &SpiffeId::parse(a).unwrap());
        let text = show(&files.cert).unwrap();
        for word in [a, "1 h 5", "server, client", "throw-away root"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(show(&files.roots).unwrap().contains("use       CA"));
        cairn_identity::Credentials::from_pem(
            &std::fs::read(&files.cert).unwrap(),
            &std::fs::read(&files.key).unwrap(),
            &std::fs::read(&files.roots).unwrap(),
        )
        .unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&files.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{:?}", issue(&args(&["web"], dir.path())).unwrap_err());
        assert!(text.contains("web") && text.contains("TRUST-DOMAIN"), "{text}");
        let twins = ["spiffe://a/ns/n/sa/s", "spiffe://b/ns/n/sa/s"];
        assert!(
            format!("{:?}", issue(&args(&twins, dir.path())).unwrap_err()).contains("same files")
        );
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "nothing").unwrap();
        assert!(format!("{:?}", show(&empty).unwrap_err()).contains("no certificate"));
        assert!(format!("{:?}", show(&dir.path().join("none")).unwrap_err()).contains("none"));
    }
}
