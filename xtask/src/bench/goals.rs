//! What has to be reached: SPDK's figures, and by how much.
//!
//! SPDK's are those of its `nvmf_tgt` 26.09-pre on one core of a machine of this kind with its own `perf` client over
//! vfio-user on another, 1 GiB of 512-byte blocks: the medians of two sittings, of which the better one is to be beaten.

use super::client::Point;

/// A disk and what is measured on it.
pub struct Disk {
    pub name: &'static str,
    /// The lines of its table in the configuration.
    pub device: &'static str,
    /// Written once before it is read, so that its memory exists.
    pub fill: bool,
    pub goals: &'static [Goal],
}

/// A figure and its bounds. Those that are missing are 0.
pub struct Goal {
    pub point: Point,
    pub limit: Limit,
    /// SPDK's figure: IOPS, or bytes in a second with [`Self::is_bandwidth`].
    pub spdk: (f64, f64),
    pub is_bandwidth: bool,
    /// SPDK's median latency in nanoseconds.
    pub spdk_p50: (f64, f64),
    /// At least so many times SPDK's figure.
    pub times_spdk: f64,
    /// At least this part of the limit.
    pub of_limit: f64,
    /// At most so many nanoseconds for the median command.
    pub p50: f64,
    /// Less than so many nanoseconds of the server's CPU for each command.
    pub server_ns: f64,
}

/// What limits a figure physically.
#[derive(Clone, Copy)]
pub enum Limit {
    /// A server that does nothing.
    Echo,
    /// Copies in a bare loop.
    Copy(Copies),
    /// Both, one after the other: a single command at a time.
    EchoAndCopy(Copies),
}

/// Copies between a large memory and some buffers.
#[derive(Clone, Copy, PartialEq)]
pub struct Copies {
    pub size: &'static str,
    pub buffers: u32,
    /// Of 100.
    pub writes: u32,
}

const M: f64 = 1e6;
const G: f64 = 1e9;

const fn goal(rw: &'static str, size: &'static str, depth: u32, limit: Limit) -> Goal {
    Goal {
        point: Point { rw, size, depth, idle_queues: 0 },
        limit,
        spdk: (0.0, 0.0),
        is_bandwidth: false,
        spdk_p50: (0.0, 0.0),
        times_spdk: 0.0,
        of_limit: 0.0,
        p50: 0.0,
        server_ns: 0.0,
    }
}

const fn copies(size: &'static str, buffers: u32, writes: u32) -> Copies {
    Copies { size, buffers, writes }
}

pub static NULL: Disk = Disk {
    name: "null",
    device: "type = \"null\"\nsize = \"1G\"\n",
    fill: false,
    goals: &[
        Goal {
            spdk: (1.09 * M, 1.48 * M),
            spdk_p50: (610.0, 830.0),
            times_spdk: 1.2,
            p50: 350.0,
            ..goal("randread", "4K", 1, Limit::Echo)
        },
        Goal { spdk: (2.4 * M, 2.6 * M), times_spdk: 1.25, ..goal("randread", "4K", 4, Limit::Echo) },
        Goal { spdk: (4.0 * M, 4.0 * M), times_spdk: 1.25, ..goal("randread", "4K", 32, Limit::Echo) },
        Goal {
            spdk: (5.5 * M, 6.4 * M),
            times_spdk: 1.25,
            server_ns: 120.0,
            ..goal("randread", "4K", 128, Limit::Echo)
        },
    ],
};

pub static MEMORY: Disk = Disk {
    name: "memory",
    device: "type = \"memory\"\nsize = \"1G\"\n",
    fill: true,
    goals: &[
        Goal {
            spdk: (0.55 * M, 0.63 * M),
            spdk_p50: (1400.0, 1600.0),
            times_spdk: 1.3,
            ..goal("randread", "4K", 1, Limit::EchoAndCopy(copies("4K", 1, 0)))
        },
        Goal {
            spdk: (1.02 * M, 1.08 * M),
            spdk_p50: (26e3, 29e3),
            times_spdk: 1.3,
            of_limit: 0.85,
            ..goal("randread", "4K", 32, Limit::Copy(copies("4K", 32, 0)))
        },
        Goal {
            spdk: (1.02 * M, 1.12 * M),
            spdk_p50: (96e3, 117e3),
            times_spdk: 1.3,
            of_limit: 0.85,
            ..goal("randread", "4K", 128, Limit::Copy(copies("4K", 128, 0)))
        },
        Goal {
            spdk: (1.06 * M, 1.18 * M),
            times_spdk: 1.3,
            ..goal("randwrite", "4K", 32, Limit::Copy(copies("4K", 32, 100)))
        },
        Goal {
            spdk: (1.08 * M, 1.11 * M),
            times_spdk: 1.3,
            ..goal("randrw", "4K", 32, Limit::Copy(copies("4K", 32, 30)))
        },
        Goal {
            spdk: (14.6 * G, 17.5 * G),
            is_bandwidth: true,
            times_spdk: 1.0,
            of_limit: 0.95,
            ..goal("randread", "128K", 32, Limit::Copy(copies("128K", 32, 0)))
        },
        Goal {
            spdk: (16.0 * G, 16.6 * G),
            is_bandwidth: true,
            times_spdk: 1.0,
            of_limit: 0.95,
            ..goal("randwrite", "128K", 32, Limit::Copy(copies("128K", 32, 100)))
        },
    ],
};
