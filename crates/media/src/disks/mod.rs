//! Devices by GRUB names: disks, partitions, volumes.
