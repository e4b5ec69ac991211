#!/usr/bin/env python3
"""Mounts every combination of overlayfs's feature options and prints how the running kernel resolves each.

This is how kernel-6.18-options.tsv was made, as root on a kernel whose overlay module has its parameters unchanged:

    kernel-options.py DIR > privileged
    unshare -Urm sh -c 'mount -t tmpfs x /mnt && kernel-options.py /mnt' > unprivileged
    paste privileged <(cut -f3 unprivileged | sed '/^E/!s/.*/ok/') > kernel-6.18-options.tsv

DIR is an empty directory on a file system with trusted xattrs. Columns: 1 with an upper layer, 0 without; the options
given; the options in effect (those that differ from the module's default, "-" for none) or the errno; the errno without
privilege, or "ok". The option verity is left out: it was found to change none of the others.
"""

import ctypes
import errno
import itertools
import os
import shutil
import sys

SHOWN = ("redirect_dir", "index", "nfs_export", "metacopy")


def main():
    base = sys.argv[1]
    for layer in ("l1", "l2", "m"):
        os.makedirs(f"{base}/{layer}", exist_ok=True)
    choices = [
        option("redirect_dir", "on", "off", "follow", "nofollow"),
        option("index", "on", "off"),
        option("nfs_export", "on", "off"),
        option("metacopy", "on", "off"),
        ["", "userxattr"],
    ]
    for has_upper in (1, 0):
        for given in itertools.product(*choices):
            given = ",".join(part for part in given if part)
            print(has_upper, given or "-", mount(base, has_upper, given), sep="\t")


def option(name, *values):
    return [""] + [f"{name}={value}" for value in values]


def mount(base, has_upper, given):
    layers = f"lowerdir={base}/l1:{base}/l2"
    if has_upper:
        for directory in ("u", "w"):
            shutil.rmtree(f"{base}/{directory}", ignore_errors=True)
            os.makedirs(f"{base}/{directory}")
        layers += f",upperdir={base}/u,workdir={base}/w"
    libc = ctypes.CDLL(None, use_errno=True)
    target = f"{base}/m".encode()
    data = ",".join(part for part in (layers, given) if part)
    if libc.mount(b"overlay", target, b"overlay", 0, data.encode()):
        return errno.errorcode[ctypes.get_errno()]
    with open("/proc/self/mounts", encoding="utf-8") as table:
        shown = [line.split()[3] for line in table if f" {base}/m " in line][-1]
    libc.umount2(target, 0)
    return ",".join(part for part in shown.split(",") if part.split("=")[0] in SHOWN) or "-"


main()
