//! A full session of cloud-hypervisor's client.

use std::os::fd::AsRawFd;

use super::support::*;

#[test]
fn a_full_session_of_the_vfio_user_crate() {
    leaves_nothing(|server, client| {
        // One client at a time.
        drop(std::mem::replace(client, Client::new(std::os::unix::net::UnixStream::pair().unwrap().0)));
        server.wait_detached(2);
        let mut client = vfio_user::Client::new(&server.path).unwrap();
        assert!(!client.resettable(), "the crate's flag is inverted");
        let bar0 = client.region(0).unwrap();
        assert_eq!((bar0.size, bar0.flags), (0x4000, 0xf));
        assert_eq!(bar0.file_offset.as_ref().unwrap().start(), 0);
        assert_eq!((bar0.sparse_areas[0].offset, bar0.sparse_areas[0].size), (0x1000, 0x1000));
        assert_eq!(client.region(7).unwrap().size, 4096);
        assert!(client.region(9).is_none());
        client.reset().unwrap();
        // BAR sizing, as pci/src/vfio.rs does it.
        client.region_write(7, 0x10, &[0xff; 4]).unwrap();
        let mut data = [0; 4];
        client.region_read(7, 0x10, &mut data).unwrap();
        assert_eq!(data, [0x04, 0xc0, 0xff, 0xff]);
        client.region_write(7, 4, &[6, 0]).unwrap();
        assert_eq!(client.get_irq_info(2).unwrap().count, u32::from(VECTORS));
        assert_eq!(client.get_irq_info(0).unwrap().count, 1);
        let memory = guest(4);
        client.dma_map(0, 0, 4 * PAGE, memory.as_raw_fd()).unwrap();
        client.dma_map(0, 0, 4 * PAGE, memory.as_raw_fd()).unwrap();
        server.fake.host.dma.table().write(PAGE, b"hello").unwrap();
        // In blocks of 16, whatever the server can take.
        let events: Vec<_> = (0..VECTORS).map(|_| eventfd()).collect();
        for (block, start) in events.chunks(16).zip((0..).step_by(16)) {
            let fds: Vec<_> = block.iter().map(AsRawFd::as_raw_fd).collect();
            client.set_irqs(2, 0x24, start, fds.len() as u32, &fds).unwrap();
        }
        server.fake.host.interrupts.trigger(32);
        assert_eq!(count(&events[32]), 1);
        client.set_irqs(2, 0x21, 0, 0, &[]).unwrap();
        assert!(!server.fake.host.interrupts.msix_enabled());
        // Reads of nowhere do not upset the stream.
        client.region_read(3, 0, &mut data).unwrap();
        assert_eq!(data, [0xff; 4]);
        client.dma_unmap(0, 4 * PAGE).unwrap();
        client.dma_unmap(0, 4 * PAGE).unwrap();
        client.region_read(7, 0, &mut data).unwrap();
        assert_eq!(data, [0x36, 0x1b, 0x10, 0x00]);
        client.shutdown().unwrap();
    });
}
