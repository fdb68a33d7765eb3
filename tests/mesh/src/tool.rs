//! `kubectl` and `helm`, run with nothing of our environment: what they keep is in the run's directory.

use crate::api::part;
use crate::program::Program;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

/// Both of them.
#[derive(Debug, Clone)]
pub struct Tools {
    program: Program,
    home: PathBuf,
    kubeconfig: Option<PathBuf>,
}

/// What a tool has said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output of a tool that did what it was told.
    ///
    /// # Panics
    /// When it did not.
    pub fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.err, self.out);
        self.out
    }

    /// Standard error of a tool that refused.
    ///
    /// # Panics
    /// When it did not.
    pub fn refused(self) -> String {
        assert_ne!(self.code, Some(0), "it did what it was told: {}", self.out);
        self.err
    }
}

impl Tools {
    /// With their caches in `home`, and no cluster.
    ///
    /// # Panics
    /// When the directory cannot be made.
    pub fn new(program: &Program, home: PathBuf) -> Self {
        std::fs::create_dir_all(&home).unwrap();
        Tools { program: program.clone(), home, kubeconfig: None }
    }

    /// For the cluster of this kubeconfig.
    pub fn with_cluster(&self, kubeconfig: &Path) -> Self {
        Tools { kubeconfig: Some(kubeconfig.to_owned()), ..self.clone() }
    }

    /// `helm`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn helm(&self, args: &[&str]) -> Said {
        self.run("helm", args, "").await
    }

    /// `kubectl`, which reads `input`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn kubectl(&self, args: &[&str], input: &str) -> Said {
        self.run("kubectl", args, input).await
    }

    async fn run(&self, role: &str, args: &[&str], input: &str) -> Said {
        let mut command = part(&self.program, role, &self.home);
        command.args(args);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let write = async move {
            // Who does not read it ends before all is written.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// A directory of this run.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn directory(&self, name: &str) -> PathBuf {
        let dir = self.home.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A directory for PATH with both.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn for_path(&self) -> PathBuf {
        let dir = self.directory("bin");
        self.program.put_tools(&dir);
        dir
    }
}
