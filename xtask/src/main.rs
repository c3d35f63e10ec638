//! The project's tasks: `cargo xtask setup`, `demo`, `ceph`, `test`, `bench`, `check`, `ci`.

mod bench;
mod ceph;
mod ci;
mod demo;
mod process;
mod server;
mod setup;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Quarry's tasks. On a fresh Debian 12 or 13 with Rust, git and root, `demo` and `test` bring all they need themselves.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Brings what a fresh machine lacks, and says what was already there
    ///
    /// Debian packages (as root), Ceph's among them, cargo-nextest, cargo-fuzz, and everything that the test guest is
    /// made of: a QEMU with vfio-user, firmware, a kernel, a root image, a bootable disk; and a kernel and a root image
    /// with RDMA and Ceph. Those are made of Debian's packages below target/guest; nothing of them is installed. A second
    /// setup does nothing and is instant.
    Setup,
    /// Boots a virtual machine on a disk that Quarry serves, and measures the disk in it
    ///
    /// Builds Quarry, serves a file as a disk, boots a guest, runs fio in it and has it verify what it wrote. Prints a
    /// table and writes result.json, latency.svg and latency.png to target/demo. Ends with 0 only when the guest found
    /// its data intact. With --ceph the disk is an image in a Ceph cluster that comes and goes with the demo. Uses KVM where KVM really works; elsewhere QEMU emulates the CPU, and the guest is the
    /// bottleneck.
    Demo(demo::Demo),
    /// A Ceph cluster on this machine to try things on: up, status, shell, down
    #[command(subcommand)]
    Ceph(ceph::Ceph),
    /// Runs every test: crates, guests, documentation, loom models, fuzz targets
    ///
    /// Ends with one line, "N passed, N failed". What cannot run on this machine is counted as skipped, or as failed
    /// where CI=true. With --rdma it runs Ceph over RDMA, in guests, and nothing else. QUARRY_FUZZ_SECONDS sets the time for each fuzz target (60).
    Test(test::Test),
    /// Measures Quarry beside SPDK's figures and beside what the machine allows
    ///
    /// A server on one CPU, a client on another, no guest between. Prints tables, and writes result.json, latency.svg and
    /// throughput.svg to target/bench. Ends with 0 unless a bound on what is counted (instructions, allocations, system
    /// calls, interrupts) is broken: what is timed depends on the machine. docs/performance.md says what the figures mean.
    Bench(bench::Bench),
    /// What has to be true of every change besides its tests: formatted, free of warnings
    Check,
    /// `check`, then `test`
    Ci,
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Setup => setup::everything(),
        Task::Demo(demo) => demo.run(),
        Task::Ceph(ceph) => ceph.run(),
        Task::Test(test) => test.run(),
        Task::Bench(bench) => bench.run(),
        Task::Check => ci::check(),
        Task::Ci => ci::run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
