//! Access logs on their way out: lines to the process's own streams, records to collectors.
//!
//! Whoever serves a request renders a line or record and puts it into a queue that is bounded in number and
//! bytes. What does not fit is dropped and counted: a reader that is slow or gone costs log lines, never
//! requests.

mod lines;
mod otel;

pub use lines::{Lines, MAX_LINES, MAX_PENDING_BYTES};
pub use otel::{
    LogQueue, LogRecord, LogTarget, LogTransport, LogValue, MAX_RECORD_BYTES, MAX_RECORDS, OtelLogs,
};

use crate::writer::Writer;
use std::sync::Arc;
use std::time::Duration;

/// As long as the last lines may take.
const LAST: Duration = Duration::from_secs(1);

/// The ways out of one process.
#[derive(Debug)]
pub struct AccessLogs {
    stdout: Lines,
    stderr: Lines,
    otel: Arc<OtelLogs>,
}

impl Default for AccessLogs {
    fn default() -> Self {
        AccessLogs {
            stdout: Lines::new("stdout", Box::new(std::io::stdout)),
            stderr: Lines::new("stderr", Box::new(std::io::stderr)),
            otel: Arc::default(),
        }
    }
}

impl AccessLogs {
    /// Lines to standard output.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Lines to standard error.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Records for collectors of OpenTelemetry.
    pub fn otel(&self) -> &Arc<OtelLogs> {
        &self.otel
    }

    /// Waits until all lines are written, at most two seconds, at the end of a process.
    pub async fn flush_soon(self: &Arc<Self>) {
        let logs = Arc::clone(self);
        let _panics_are_told = tokio::task::spawn_blocking(move || logs.flush(LAST)).await;
    }

    /// Waits until all lines are written, at most for `patience`. Blocks the thread.
    pub fn flush(&self, patience: Duration) {
        self.stdout.flush(patience);
        self.stderr.flush(patience);
    }

    /// Says nothing of logs that nothing was written to.
    pub(crate) fn write(&self, writer: &mut Writer) {
        let otel = self.otel.counts();
        for (log, written, dropped) in [
            ("stdout", self.stdout.written(), self.stdout.dropped()),
            ("stderr", self.stderr.written(), self.stderr.dropped()),
            ("otlp", otel.0, otel.1),
        ] {
            if written + dropped == 0 {
                continue;
            }
            let labels = [("log", log)];
            writer.counter(
                "cairn_access_log_lines_total",
                "Lines of access logs that were written, and records that were handed to an exporter.",
                &labels,
                written,
            );
            writer.counter(
                "cairn_access_log_dropped_total",
                "Lines and records of access logs that were dropped because their queue was full or could not be written.",
                &labels,
                dropped,
            );
        }
    }
}
