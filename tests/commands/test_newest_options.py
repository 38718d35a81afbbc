"""Options of the newest release of QEMU: each is here, or docs/differences.md says why it is not.

Commands: ``docs/tools/qemu-img.rst`` and the long forms of release 10.1 and later in ``qemu-img.c``. Drivers:
``BlockdevOptions`` and ``BlockdevCreateOptions`` in ``qapi/block-core.json``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from diskmill.contract.drivers import FilterDriver, FormatDriver, ProtocolDriver
from diskmill.opening.registry import default_registry
from diskmill.opening.runtime import OPTIONS
from diskmill_cli.main import load

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
TOLD = set(re.findall(r"`([^`\s]+)`", PAGE.partition("## newer-options")[2].partition("\n## ")[0]))
"""What the page says of options of later releases."""

COMMANDS = {
    "amend": "-o --options -p --progress -q --quiet -f --format -t --cache --force --object --image-opts",
    "bench": "-c --count -d --depth -f --format --flush-interval -i --aio -n --native --no-drain -o --offset --pattern "
    "-q --quiet -s --buffer-size -S --step-size -t --cache -w --write -U --force-share --object --image-opts",
    "bitmap": "--merge --add --remove --remove-all --clear --enable --disable -b --source-file -F --source-format "
    "-g --granularity --object --image-opts -f --format",
    "check": "--object --image-opts -q --quiet -f --format --output -r --repair -T --cache -U --force-share",
    "commit": "--object --image-opts -q --quiet -f --format -t --cache -b --base -r --rate-limit -d "
    "--drop -p --progress",
    "compare": "--object --image-opts -f --a-format -F --b-format -T --cache -p --progress -q --quiet -s --strict -U "
    "--force-share",
    "convert": "--object --source-image-opts --image-opts --target-image-opts --target-is-zero --bitmaps "
    "--skip-broken-bitmaps -U --force-share -C --copy-range-offloading -c --compress -p --progress -q --quiet "
    "-n --no-create -f --source-format -t --target-cache -T --source-cache -O --target-format -b --backing -B -F "
    "--backing-format -o --target-format-options -l --snapshot -S --sparse-size -r --rate-limit -m --parallel "
    "-W --oob-writes --salvage",
    "create": "--object -q --quiet -f --format -b --backing -B -F --backing-format -u --backing-unsafe -o --options",
    "dd": "--image-opts -U --force-share -f --format -O --output-format --object",
    "info": "--object --image-opts -f --format --output --backing-chain -U --force-share --limits -t --cache",
    "map": "--object --image-opts -f --format --start-offset -s --max-length -l --output -U --force-share",
    "measure": "--output -O --target-format -o -s --size --object --source-image-opts --image-opts "
    "-f --source-format -l "
    "--snapshot -U --force-share",
    "rebase": "--object --image-opts -U --force-share -q --quiet -f --format -t --cache -T "
    "--backing-cache -p --progress "
    "-u --backing-unsafe -c --compress -b --backing -F -B --backing-format",
    "resize": "--object --image-opts -f --format --preallocation -q --quiet --shrink",
    "snapshot": "--object --image-opts -f --format -U --force-share -q --quiet -l --list -a --apply "
    "-c --create -d --delete",
}
_CURL = "url readahead timeout username password-secret proxy-username proxy-password-secret"
_QCOW2 = (
    "lazy-refcounts pass-discard-request pass-discard-snapshot pass-discard-other discard-no-unref overlap-check "
    "overlap-check.template overlap-check.main-header overlap-check.active-l1 overlap-check.active-l2 "
    "overlap-check.refcount-table overlap-check.refcount-block overlap-check.snapshot-table overlap-check.inactive-l1 "
    "overlap-check.inactive-l2 overlap-check.bitmap-directory cache-size l2-cache-size l2-cache-entry-size "
    "refcount-cache-size cache-clean-interval encrypt.format encrypt.key-secret data_file "
    "data_file_raw extended_l2 size "
    "compat backing_file backing_fmt cluster_size preallocation lazy_refcounts refcount_bits compression_type "
    "keep_data_file"
)
DRIVERS = {
    "blkdebug": "config align max-transfer opt-write-zero max-write-zero opt-discard max-discard inject-error.*.event "
    "inject-error.*.state inject-error.*.iotype inject-error.*.errno inject-error.*.sector inject-error.*.once "
    "inject-error.*.immediately set-state.*.event set-state.*.state set-state.*.new_state take-child-perms.* "
    "unshare-child-perms.*",
    "blklogwrites": "log-sector-size log-append log-super-update-interval",
    "copy-on-read": "bottom",
    "file": "filename pr-manager locking aio aio-max-batch drop-cache x-check-cache-dropped nocow",
    "ftp": _CURL,
    "ftps": f"{_CURL} sslverify",
    "http": f"{_CURL} cookie cookie-secret",
    "https": f"{_CURL} cookie cookie-secret sslverify",
    "luks": "key-secret cipher-alg cipher-mode ivgen-alg ivgen-hash-alg hash-alg iter-time detached-header",
    "nbd": "server.type server.host server.port server.path export tls-creds tls-hostname "
    "x-dirty-bitmap reconnect-delay "
    "open-timeout",
    "null-aio": "size latency-ns read-zeroes",
    "null-co": "size latency-ns read-zeroes",
    "parallels": "prealloc-mode prealloc-size cluster_size",
    "preallocate": "prealloc-align prealloc-size",
    "qcow": "encrypt.format encrypt.key-secret",
    "qcow2": _QCOW2,
    "qed": "cluster_size table_size",
    "iscsi": "transport portal target user password-secret lun initiator-name header-digest timeout",
    "nfs": "server.type server.host path user group tcp-syn-count readahead-size page-cache-size debug",
    "quorum": "blkverify vote-threshold rewrite-corrupted read-pattern",
    "raw": "offset size",
    "ssh": "server.host server.port path user host-key-check.mode host-key-check.type host-key-check.hash",
    "throttle": "throttle-group",
    "vdi": "preallocation static",
    "vhdx": "log_size block_size subformat block_state_zero",
    "vmdk": "subformat adapter_type hwversion toolsversion zeroed_grain compat6",
    "vpc": "subformat force_size force_size_calc",
}
NODES = "node-name discard cache.direct cache.no-flush active read-only auto-read-only detect-zeroes force-share"
NAMES = (
    "blkdebug blklogwrites blkreplay blkverify bochs cloop compress copy-before-write copy-on-read dmg file ftp ftps "
    "gluster host_cdrom host_device http https io_uring iscsi luks nbd nfs null-aio null-co nvme "
    "nvme-io_uring parallels "
    "preallocate qcow qcow2 qed quorum raw rbd replication snapshot-access ssh throttle vdi vhdx virtio-blk-vfio-pci "
    "virtio-blk-vhost-user virtio-blk-vhost-vdpa vmdk vpc vvfat"
)


def missing(newest: str, ours: set[str]) -> set[str]:
    """Of the *newest* release's words, those that are neither *ours* nor on the page."""
    return set(newest.split()) - ours - TOLD


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_them(name: str) -> None:
    assert not missing(COMMANDS[name], {flag for option in load(name).options for flag in option.flags})


def test_a_driver_takes_them() -> None:
    registry = default_registry()
    found = {
        driver.name: {option.name for option in driver.options}
        for kind in (FormatDriver, ProtocolDriver, FilterDriver)
        for driver in registry.all(kind.group)
    }
    assert {name: lost for name, text in DRIVERS.items() if (lost := missing(text, found[name]))} == {}
    aliases = {"host_device", "host_cdrom"}
    assert not missing(NAMES, set(found) | aliases)
    assert not missing(NODES, {option.name for option in OPTIONS})
