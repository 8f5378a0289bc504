#!/usr/bin/env python3
"""A disk from which the boot loader of QEMU's IBM Z machine starts a kernel:

    zipl.py KERNEL INITRD "KERNEL ARGUMENTS" DISK

Block 0 points at a table of programs, that at a list of what is loaded where, each piece by a list of runs of blocks: the
layout that zipl writes to SCSI disks, as pc-bios/s390-ccw/bootmap.h of QEMU has it. The kernel is Debian's, uncompressed
behind its first 64 KiB, where it takes a pointer to its initrd and its arguments (arch/s390/kernel/head.S and
asm/setup.h of Linux).
"""

import struct
import sys

BLOCK = 512
MAGIC = b"zIPL"
KERNEL_AT = 0x10000
# In the kernel: where the initrd is and how long, and its arguments.
PARAMETERS, ARGUMENTS, ARGUMENTS_MAX = 0x10408, 0x10480, 895
INITRD_AT = 0x4000000
LOAD, EXEC = 2, 1
# Starts at KERNEL_AT, in the mode in which the firmware starts a kernel.
PSW = 0x0008000080000000 | KERNEL_AT
RUN_MAX = 65536


class Disk:
    def __init__(self):
        self.blocks = bytearray(BLOCK)

    def put(self, data):
        """Appends; gives the number of its first block."""
        first = len(self.blocks) // BLOCK
        self.blocks += data + bytes(-len(data) % BLOCK)
        return first

    def script(self, data):
        """Appends data and the list of its runs; gives the list's block."""
        first, left = self.put(data), -(-len(data) // BLOCK)
        runs = b""
        while left:
            count = min(left, RUN_MAX)
            runs += pointer(first, count)
            first, left = first + count, left - count
        assert len(runs) < BLOCK - 16, "too large for one list"
        return self.put(runs)


def pointer(block, count=1):
    return struct.pack(">QHHI", block, BLOCK, count - 1, 0)


def component(block, kind, value):
    return pointer(block) + bytes(7) + bytes([kind]) + struct.pack(">Q", value)


def main():
    kernel_path, initrd_path, arguments, disk_path = sys.argv[1:]
    kernel = bytearray(open(kernel_path, "rb").read())
    initrd = open(initrd_path, "rb").read()
    assert len(kernel) < INITRD_AT, "the kernel reaches into the initrd"
    words = arguments.encode()
    assert len(words) <= ARGUMENTS_MAX, "too many arguments"
    struct.pack_into(">QQ", kernel, PARAMETERS, INITRD_AT, len(initrd))
    kernel[ARGUMENTS : ARGUMENTS + len(words) + 1] = words + b"\0"

    disk = Disk()
    pieces = component(disk.script(bytes(kernel[KERNEL_AT:])), LOAD, KERNEL_AT)
    pieces += component(disk.script(initrd), LOAD, INITRD_AT)
    pieces += component(0, EXEC, PSW)
    program = disk.put(MAGIC + bytes(28) + pieces)
    table = disk.put(MAGIC + bytes(12) + pointer(program))
    disk.blocks[:32] = MAGIC + struct.pack(">I", 1) + bytes(8) + pointer(table)
    disk.put(bytes(1 << 20))
    with open(disk_path, "wb") as file:
        file.write(disk.blocks)


main()
