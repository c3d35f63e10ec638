#!/bin/sh
# Starts cloud-hypervisor with a disk that Quarry serves.
#
#   quarry serve --socket /run/quarry/disk.sock --disk file:disk.img,size=10G &
#   SOCKET=/run/quarry/disk.sock qemu-configs/launch/cloud-hypervisor.sh --kernel vmlinux --disk path=system.raw
#
# Everything after the script's name goes to cloud-hypervisor. A second disk is a second --user-device.
set -eu
SOCKET=${SOCKET:?the path of the socket that quarry serve listens at}

# shared=on: Quarry reads and writes the guest's memory in place. Without it no command can succeed.
exec "${CLOUD_HYPERVISOR:-cloud-hypervisor}" \
    --cpus "boot=${CPUS:-2}" \
    --memory "size=${MEMORY:-4G},shared=on" \
    --user-device "socket=$SOCKET" \
    "$@"
