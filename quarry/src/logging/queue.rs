//! [`Queue`]: log lines on their way to standard error, written by a thread of their own. Whoever logs never waits
//! for the reader at the other end: a line that finds the queue full is dropped and counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::Format;

/// Lines that wait for a slow reader.
const LINES: usize = 2048;
/// A reader that takes nothing for so long does not hold up the end of the process.
const PATIENCE: Duration = Duration::from_secs(1);

/// The end of the queue that those who log have.
#[derive(Clone)]
pub(super) struct Queue {
    lines: SyncSender<Line>,
    counts: Arc<Counts>,
}

/// A line, and how many before it were lost.
struct Line {
    missing: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Counts {
    /// Lines that were put into the queue.
    queued: AtomicU64,
    /// Those of them that are written or lost.
    done: AtomicU64,
    /// Lines that were lost and that no line in the queue tells of.
    dropped: AtomicU64,
}

impl Queue {
    /// Starts the thread that writes to `sink`.
    pub(super) fn start(format: Format, sink: impl AsFd + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES);
        let counts = Arc::new(Counts::default());
        let queue = Self { lines, counts: counts.clone() };
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || write_lines(&waiting, &counts, format, sink))?;
        Ok(queue)
    }

    /// Waits until what was logged before is written, unless nobody reads it.
    pub(super) fn flush(&self) {
        let counts = &*self.counts;
        let target = counts.queued.load(Ordering::Acquire);
        let (mut last, mut since) = (counts.done.load(Ordering::Acquire), Instant::now());
        while last < target && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            let done = counts.done.load(Ordering::Acquire);
            if done != last {
                (last, since) = (done, Instant::now());
            }
        }
    }
}

/// One line is one write: the subscriber formats it first.
impl io::Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let missing = self.counts.dropped.swap(0, Ordering::AcqRel);
        match self.lines.try_send(Line { missing, bytes: line.to_vec() }) {
            Ok(()) => self.counts.queued.fetch_add(1, Ordering::AcqRel),
            Err(_) => self.counts.dropped.fetch_add(missing + 1, Ordering::AcqRel),
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Writes lines as they come, for as long as anybody can log.
fn write_lines(lines: &Receiver<Line>, counts: &Counts, format: Format, sink: impl AsFd) {
    let tell = |missing: u64| missing == 0 || write_all(&sink, gap(format, missing).as_bytes()).is_ok();
    while let Ok(first) = lines.recv() {
        let mut next = Ok(first);
        while let Ok(Line { missing, bytes }) = next {
            if !tell(missing) {
                counts.dropped.fetch_add(missing + 1, Ordering::AcqRel);
            } else if write_all(&sink, &bytes).is_err() {
                counts.dropped.fetch_add(1, Ordering::AcqRel);
            }
            next = lines.try_recv();
            if let Err(TryRecvError::Empty) = next {
                // The last ones were lost, and perhaps no further line comes.
                let missing = counts.dropped.swap(0, Ordering::AcqRel);
                if !tell(missing) {
                    counts.dropped.fetch_add(missing, Ordering::AcqRel);
                }
            }
            counts.done.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// The line that tells of lines that are missing. Not an event: no filter may hide it.
fn gap(format: Format, dropped: u64) -> String {
    let mut now = String::new();
    if SystemTime.format_time(&mut Writer::new(&mut now)).is_err() {
        now.clear();
    }
    let plural = if dropped == 1 { "" } else { "s" };
    let text = format!("{dropped} line{plural} dropped: the log was not read in time");
    match format {
        Format::Text => format!("{now}  WARN {text}\n"),
        Format::Json => {
            format!(
                "{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"{text}\",\"dropped\":{dropped}}}\n"
            )
        }
    }
}

/// Writes all of it, however long that takes. Not through `std`, whose lock would then be taken from everybody.
fn write_all(sink: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&sink, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Somebody who shares it made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&sink, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::OwnedFd;

    use super::*;

    fn queue(format: Format) -> (Queue, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        (Queue::start(format, writer).unwrap(), reader)
    }

    #[test]
    fn a_reader_that_sleeps_holds_up_nobody_and_is_told_what_it_missed() {
        let (mut queue, reader) = queue(Format::Json);
        let all = LINES * 4;
        for n in 0..all {
            queue.write_all(format!("{n} {}\n", "-".repeat(100)).as_bytes()).unwrap();
        }
        queue.flush(); // gives up
        let (mut kept, mut missed) = (0, 0);
        for line in BufReader::new(std::fs::File::from(reader)).lines().map(Result::unwrap) {
            match line.split_once("\"dropped\":") {
                None => kept += 1,
                Some((_, rest)) => missed += rest.trim_end_matches('}').parse::<usize>().unwrap(),
            }
            if kept + missed == all {
                break;
            }
        }
        assert!(kept >= LINES && missed >= LINES, "{kept} {missed}");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let (mut queue, reader) = queue(Format::Text);
        drop(reader);
        for _ in 0..10 {
            queue.write_all(b"line\n").unwrap();
        }
        queue.flush();
        assert_eq!(queue.counts.done.load(Ordering::Acquire), 10);
        assert_eq!(queue.counts.dropped.load(Ordering::Acquire), 10);
    }

    #[test]
    fn the_gap_is_a_line_of_its_format() {
        assert!(gap(Format::Text, 1).ends_with("Z  WARN 1 line dropped: the log was not read in time\n"));
        let json = gap(Format::Json, 7);
        assert!(json.starts_with("{\"timestamp\":\"2") && json.ends_with("\"dropped\":7}\n"), "{json}");
    }
}
