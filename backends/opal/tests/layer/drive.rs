//! A drive for tests: the layer as a device, with maps made by hand.

use std::sync::Arc;

use block::testing::Rng;
use block::{Channel, Device, Error, Info, Reactor};
use block_opal::crypto::xts::XtsKey;
use block_opal::layer::{self, Shared};
use block_opal::secret::Secret;
use block_opal::{Extent, Layout, RangeMap};

/// The layer over a device.
pub struct Drive {
    pub inner: Arc<dyn Device>,
    pub shared: Arc<Shared>,
    pub layout: Layout,
    pub pool_bytes: usize,
}

impl Drive {
    /// All is locked.
    pub fn locked(inner: Arc<dyn Device>, sparse: bool) -> Self {
        let info = inner.info();
        let layout = Layout::on(info.block_size, info.blocks).expect("a device that is large enough");
        Self { shared: Shared::new(&info, layout, sparse), inner, layout, pool_bytes: layer::POOL_BYTES }
    }

    /// Open, in ranges with different keys.
    pub fn open(inner: Arc<dyn Device>, sparse: bool) -> Self {
        let drive = Self::locked(inner, sparse);
        let blocks = drive.layout.blocks;
        let (first, second) = (key(1), key(2));
        let ends = [(5, first.clone()), (9, second.clone()), (blocks / 2 + 1, first), (u64::MAX, second)];
        let extents = ends.map(|(end, key)| open(end, key)).into();
        drive.shared.publish(RangeMap { extents, shadow: None });
        drive
    }
}

impl Device for Drive {
    fn info(&self) -> Info {
        self.shared.info()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        let inner = self.inner.channel(reactor)?;
        layer::open_channel_with(inner, &self.shared, reactor, self.pool_bytes)
    }
}

/// The key with this number.
pub fn key(seed: u64) -> Arc<XtsKey> {
    let bytes = Rng(seed).bytes(64);
    Arc::new(XtsKey::new(Secret::new(|key| key.copy_from_slice(&bytes))).expect("different halves"))
}

/// An extent without locks.
pub fn open(end: u64, key: Arc<XtsKey>) -> Extent {
    Extent { end, read_locked: false, write_locked: false, key: Some(key) }
}
