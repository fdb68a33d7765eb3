//! Lines for one stream of the process.
//!
//! Lines are appended to one buffer; a thread of its own, which begins with the first line, swaps it for an
//! empty one and writes. It writes whole lines, as many as a pipe takes at once without mixing them with
//! what others write (`PIPE_BUF`).

use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Most bytes that wait; as many again may be on their way.
pub const MAX_PENDING_BYTES: usize = 4 << 20;
/// Most lines that wait.
pub const MAX_LINES: usize = 64 << 10;
/// What a pipe takes in one piece (Linux: `PIPE_BUF`).
const PIECE: usize = 4096;
/// Pause before a stream that takes nothing now is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts the thread that writes.
type Start = Box<dyn FnOnce(Arc<Shared>) -> std::io::Result<()> + Send>;
/// Makes the stream, on the thread that writes.
type Open<W> = Box<dyn Fn() -> W + Send + Sync>;

/// Lines for one stream.
pub struct Lines {
    name: &'static str,
    shared: Arc<Shared>,
    start: Mutex<Option<Start>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    lines: usize,
    started: bool,
    writing: bool,
}

impl Lines {
    /// For a stream of that name, which is opened with the first line.
    pub fn new<W: Write + 'static>(name: &'static str, open: Open<W>) -> Self {
        let start = move |shared: Arc<Shared>| {
            let thread = std::thread::Builder::new().name(format!("cairn-log-{name}"));
            thread.spawn(move || shared.run(open())).map(drop)
        };
        Lines { name, shared: Arc::default(), start: Mutex::new(Some(Box::new(start))) }
    }

    /// Takes a line with its line feed. `false`: dropped, and counted.
    pub fn push(&self, line: &[u8]) -> bool {
        let mut queue = self.shared.queue.lock();
        if !queue.started && !self.begin(&mut queue) {
            self.shared.dropped.fetch_add(1, Relaxed);
            return false;
        }
        if queue.lines >= MAX_LINES || queue.bytes.len() + line.len() > MAX_PENDING_BYTES {
            drop(queue);
            self.shared.dropped.fetch_add(1, Relaxed);
            return false;
        }
        queue.bytes.extend_from_slice(line);
        queue.lines += 1;
        let first = queue.lines == 1;
        drop(queue);
        if first {
            self.shared.filled.notify_one();
        }
        true
    }

    fn begin(&self, queue: &mut Queue) -> bool {
        let Some(start) = self.start.lock().take() else { return false };
        queue.started = start(Arc::clone(&self.shared)).is_ok();
        queue.started
    }

    /// Waits until everything is written, at most for `patience`; `false`: something is left.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut queue = self.shared.queue.lock();
        while queue.lines > 0 || queue.writing {
            if self.shared.emptied.wait_until(&mut queue, until).timed_out() {
                return queue.lines == 0 && !queue.writing;
            }
        }
        true
    }

    /// Lines that were written.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Relaxed)
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    fn run(&self, mut stream: impl Write) {
        let mut bytes = Vec::new();
        loop {
            let lines = {
                let mut queue = self.queue.lock();
                while queue.lines == 0 {
                    self.filled.wait(&mut queue);
                }
                bytes.clear();
                std::mem::swap(&mut bytes, &mut queue.bytes);
                queue.writing = true;
                std::mem::take(&mut queue.lines)
            };
            let counter = match write(&mut stream, &bytes) {
                Ok(()) => &self.written,
                Err(_) => &self.dropped,
            };
            counter.fetch_add(lines as u64, Relaxed);
            self.queue.lock().writing = false;
            self.emptied.notify_all();
        }
    }
}

/// Writes whole lines; a longer line than a piece is one piece.
fn write(stream: &mut impl Write, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let fits = bytes.get(..PIECE).unwrap_or(bytes);
        let end = match fits.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None => bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1),
        };
        let (piece, rest) = bytes.split_at(end);
        all(stream, piece)?;
        bytes = rest;
    }
    Ok(())
}

/// A stream that somebody set to not block is waited for, on a thread that does nothing else.
#[allow(clippy::disallowed_methods)]
fn all(stream: &mut impl Write, mut piece: &[u8]) -> std::io::Result<()> {
    loop {
        let step = match piece {
            [] => stream.flush().map(|()| 0),
            _ => stream.write(piece),
        };
        match step {
            Ok(_) if piece.is_empty() => return Ok(()),
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => piece = piece.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use std::sync::mpsc;

    /// Hands on what is written, in the pieces in which it was, and waits for leave.
    struct Held {
        leave: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.leave.recv().map_err(|_| std::io::Error::other("nobody reads"))?;
            self.written.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn held() -> (Lines, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let (leave, wait) = mpsc::channel();
        let (written, read) = mpsc::channel();
        let stream = Mutex::new(Some(Held { leave: wait, written }));
        let lines = Lines::new("test", Box::new(move || stream.lock().take().unwrap()));
        (lines, leave, read)
    }

    #[test]
    fn whole_lines_in_pieces() {
        let (lines, leave, read) = held();
        let line = [b"x".repeat(1500), b"\n".to_vec()].concat();
        let long = [b"y".repeat(9000), b"\n".to_vec()].concat();
        assert!(lines.push(b"first\n"));
        for line in [&line, &line, &line, &long, &line] {
            assert!(lines.push(line));
        }
        for _ in 0..20 {
            leave.send(()).unwrap();
        }
        assert!(lines.flush(Duration::from_secs(30)));
        drop(lines);
        let pieces: Vec<Vec<u8>> = read.try_iter().collect();
        assert!(pieces.iter().all(|piece| piece.ends_with(b"\n")));
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE || *piece == long));
        let all = pieces.concat();
        assert_eq!(all.len(), 6 + 4 * line.len() + long.len());
        assert!(all.starts_with(b"first\nxx"));
    }

    #[test]
    fn a_stream_that_takes_nothing_costs_lines_only() {
        let (lines, leave, read) = held();
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let mut taken = 0;
        while lines.dropped() == 0 {
            taken += u64::from(lines.push(&line));
        }
        let most = 2 * MAX_PENDING_BYTES as u64 / 1024;
        assert!((most / 2..=most).contains(&taken), "{taken}");
        assert_eq!((lines.written(), lines.dropped()), (0, 1));
        assert!(!lines.flush(Duration::from_millis(1)));
        for _ in 0..taken {
            leave.send(()).unwrap();
        }
        assert!(lines.flush(Duration::from_secs(30)));
        assert_eq!(lines.written(), taken);
        assert_eq!(read.try_iter().map(|piece| piece.len()).sum::<usize>(), taken as usize * 1024);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let (lines, leave, _read) = held();
        drop(leave);
        assert!(lines.push(b"lost\n"));
        assert!(lines.flush(Duration::from_secs(30)));
        assert_eq!((lines.written(), lines.dropped()), (0, 1));
    }
}
