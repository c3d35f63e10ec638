#!/bin/sh
# Starts QEMU (10.1 or later) with a disk that Quarry serves.
#
#   quarry serve --socket /run/quarry/disk.sock --disk file:disk.img,size=10G &
#   SOCKET=/run/quarry/disk.sock qemu-configs/launch/qemu.sh -drive file=system.qcow2,if=virtio
#
# Everything after the script's name goes to QEMU. To boot from the disk, add "bootindex":1 to its -device.
set -eu
SOCKET=${SOCKET:?the path of the socket that quarry serve listens at}
MEMORY=${MEMORY:-4G}
QEMU=${QEMU:-qemu-system-x86_64} # cargo xtask setup makes one: target/guest/qemu-system-x86_64
ACCEL=${ACCEL:-kvm}              # tcg where there is no KVM

# - share=on: Quarry reads and writes the guest's memory in place. Without it no command can succeed.
# - The disk sits on a PCIe root port, so that it can be unplugged and plugged in again.
# - x-msg-timeout is in milliseconds. QEMU's default of 5 s is too short: an answer that comes later breaks the
#   connection for good.
# - A guest with a vIOMMU needs -device intel-iommu,intremap=on,caching-mode=on, before the disk.
exec "$QEMU" \
    -M q35,memory-backend=mem0 -accel "$ACCEL" -cpu max -smp "${CPUS:-2}" -m "$MEMORY" \
    -object "memory-backend-memfd,id=mem0,size=$MEMORY,share=on" \
    "$@" \
    -device pcie-root-port,id=port0,chassis=1,slot=1 \
    -device '{"driver":"vfio-user-pci","bus":"port0","socket":{"type":"unix","path":"'"$SOCKET"'"},"x-msg-timeout":60000}'
