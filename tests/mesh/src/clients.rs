//! What people type: `kubectl` and `helm` as a cluster's administrator.

use crate::api::part;
use crate::program::Program;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

/// Both, with a home of their own.
#[derive(Debug, Clone)]
pub struct Clients {
    program: Program,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Clients {
    /// For the cluster of this kubeconfig.
    ///
    /// # Panics
    /// When `home` cannot be made.
    pub fn new(program: &Program, kubeconfig: &Path, home: &Path) -> Self {
        std::fs::create_dir_all(home).unwrap();
        let (kubeconfig, home) = (kubeconfig.to_owned(), home.to_owned());
        Clients { program: program.clone(), kubeconfig, home }
    }

    /// What `kubectl` prints.
    ///
    /// # Panics
    /// When it fails.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.run("kubectl", args, "").await
    }

    /// As [`Clients::kubectl`], with this on its standard input.
    ///
    /// # Panics
    /// When it fails.
    pub async fn kubectl_with(&self, args: &[&str], input: &str) -> String {
        self.run("kubectl", args, input).await
    }

    /// What `helm` prints.
    ///
    /// # Panics
    /// When it fails.
    pub async fn helm(&self, args: &[&str]) -> String {
        self.run("helm", args, "").await
    }

    async fn run(&self, role: &str, args: &[&str], input: &str) -> String {
        let mut command = part(&self.program, role, &self.home);
        command.args(args).env("KUBECONFIG", &self.kubeconfig).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Who does not read it ends before all is written.
        let _gone = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{role} {}: {complaint}", args.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }
}
