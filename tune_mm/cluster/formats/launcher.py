"""A file of Ray's cluster launcher (`ray up`) as nodes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune_mm.cluster.formats.files import (
    ClusterFile,
    ClusterLine,
    NodeGroup,
    as_list,
    as_map,
    assigned,
    documented,
    is_count,
)
from tune_mm.config.yaml import Document

# What Ray runs where the file says nothing (ray/autoscaler/<provider>/defaults.yaml of 2.60).
_DEFAULT_START = {
    "head_start_ray_commands": "ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml",
    "worker_start_ray_commands": "ray start --address=$RAY_HEAD_IP:6379",
}
_HOST = {"aws": " --dashboard-host=0.0.0.0", "gcp": " --dashboard-host=0.0.0.0"}
_GPU_INSTANCES = re.compile(r"(?:p[2-9]\w*|g[3-9]\w*|gr6\w*)\.")


def build(path: Path, text: str, document: Document) -> ClusterFile:
    """The nodes of the file. Values of a wrong type are passed over: `schema` reports them."""
    provider = str(as_map(document.data.get("provider")).get("type", ""))
    reader = _LauncherReader(document, provider)
    return ClusterFile(
        path,
        "launcher",
        text,
        (document,),
        reader.head(),
        reader.workers(),
        documented(text),
        provider,
    )


class _LauncherReader:
    def __init__(self, document: Document, provider: str) -> None:
        self.data = document.data
        self.document = document
        self.provider = provider
        self.docker = as_map(self.data.get("docker"))
        self.types = as_map(self.data.get("available_node_types"))

    def line(self, key: str) -> int:
        return self.document.line_of(key) or 0

    def head(self) -> NodeGroup:
        name = str(self.data.get("head_node_type", ""))
        hosted, commands = self._shell("head", "")
        options = self._options("run_options") + self._options("head_run_options")
        image = self._image("head_image", name)
        return self._node("head", name, hosted, commands, options, image)

    def workers(self) -> tuple[NodeGroup, ...]:
        if self.provider == "local":
            count = len(as_list(as_map(self.data.get("provider")).get("worker_ips")))
            named = ClusterLine(str(count), self.line("provider.worker_ips"))
            return (self._worker("", named),)
        names = []
        for name in self.types:
            if name != self.data.get("head_node_type"):
                names.append(name)
        return tuple(self._worker(name) for name in names)

    def _worker(self, name: str, count: ClusterLine | None = None) -> NodeGroup:
        own = f"available_node_types.{name}.docker" if name else ""
        hosted, commands = self._shell("worker", name)
        options = self._options("run_options") + self._options("worker_run_options")
        options += self._options("worker_run_options", own) if own else ()
        image = self._image("worker_image", name)
        shown = f"workers '{name}'" if name else "workers"
        node = self._node(shown, name, hosted, commands, options, image)
        if count:
            return replace(node, least=count, most=count)
        return node

    def _node(
        self,
        shown: str,
        name: str,
        hosted: tuple[ClusterLine, ...],
        commands: tuple[ClusterLine, ...],
        options: tuple[ClusterLine, ...],
        image: ClusterLine | None,
    ) -> NodeGroup:
        at = f"available_node_types.{name}"
        env = {
            **assigned(tuple(o for o in options if re.match(r"(?:-e|--env)\b", o.text))),
            **assigned(commands),
        }
        mounts = _mounts(hosted + commands, options, bool(self.docker))
        least = self._number(f"{at}.min_workers")
        most = self._number(f"{at}.max_workers")
        line = self.line(at) or self.line("provider")
        return NodeGroup(
            shown, line, commands, hosted, env, image, mounts, self._gpus(name), least, most
        )

    def _shell(
        self, role: str, name: str
    ) -> tuple[tuple[ClusterLine, ...], tuple[ClusterLine, ...]]:
        """Commands on the host and, where there is one, in the container: `initialization_commands`
        run outside.
        """
        if name and role == "worker":
            own = f"available_node_types.{name}."
        else:
            own = ""
        first = self._list(f"{own}initialization_commands") or self._list("initialization_commands")
        if own:
            setup = self._list(f"{own}worker_setup_commands")
        else:
            setup = ()
        setup = setup or self._list("setup_commands") + self._list(f"{role}_setup_commands")
        key = f"{role}_start_ray_commands"
        if key in self.data:
            start = self._list(key)
        else:
            start = self._default_start(key)
        if self.docker:
            return first, setup + start
        return ((), first + setup + start)

    def _default_start(self, key: str) -> tuple[ClusterLine, ...]:
        if key.startswith("head"):
            extra = _HOST.get(self.provider, "")
        else:
            extra = ""
        return ClusterLine("ray stop", 0), ClusterLine(_DEFAULT_START[key] + extra, 0)

    def _list(self, key: str) -> tuple[ClusterLine, ...]:
        items = as_list(self._at(key))
        return tuple(
            ClusterLine(item, self.line(f"{key}.{i}"))
            for i, item in enumerate(items)
            if isinstance(item, str)
        )

    def _options(self, key: str, section: str = "docker") -> tuple[ClusterLine, ...]:
        return self._list(f"{section}.{key}")

    def _at(self, key: str) -> Any:
        """The value at a dotted key; names of node types may hold dots themselves."""
        value: Any = self.data
        rest = key
        while rest and isinstance(value, dict):
            name = max(
                (k for k in value if rest == k or rest.startswith(f"{k}.")), key=len, default=None
            )
            if name is None:
                return None
            value = value[name]
            rest = rest[len(name) + 1 :]
        if rest:
            return None
        return value

    def _number(self, key: str) -> ClusterLine | None:
        value = self._at(key)
        if is_count(value):
            return ClusterLine(str(value), self.line(key))
        return None

    def _image(self, key: str, name: str) -> ClusterLine | None:
        if key == "worker_image":
            own = f"available_node_types.{name}.docker.worker_image"
        else:
            own = ""
        machine = [f"available_node_types.{name}.node_config.ImageId"]
        if self.docker:
            places = [own, f"docker.{key}", "docker.image"]
        else:
            places = machine
        return next(
            (
                ClusterLine(str(self._at(p)), self.line(p))
                for p in places
                if p and self._at(p) is not None
            ),
            None,
        )

    def _gpus(self, name: str) -> ClusterLine | None:
        """GPUs that Ray will count on such a node; None: it finds out by itself (machines of one's
        own).
        """
        if self.provider == "local":
            return None
        at = f"available_node_types.{name}"
        config = as_map(self._at(f"{at}.node_config"))
        given = self._number(f"{at}.resources.GPU")
        if self.provider == "gcp":
            has = any(
                as_map(a).get("acceleratorCount") for a in as_list(config.get("guestAccelerators"))
            )
            if not (has or re.match("[ag][2-9]", str(config.get("machineType")))):
                given = None
        elif self.provider == "aws":
            known = _GPU_INSTANCES.match(str(config.get("InstanceType", "")))
            if known:
                given = given or ClusterLine("1", self.line(at))
            else:
                given = None
        return given or ClusterLine("0", self.line(at))


def _mounts(
    commands: tuple[ClusterLine, ...], options: tuple[ClusterLine, ...], contained: bool
) -> tuple[str, ...]:
    """Folders of a shared file system: what `mount` or `mountpoint` names, and a container is
    given.
    """
    text = "\n".join(c.text for c in commands)
    there = set(re.findall(r"\bmountpoint\s+(?:-q\s+)?(/\S+)", text))
    there |= set(
        re.findall(r"\bmount\s+-t\s+(?:nfs4?|efs|lustre|ceph|cifs)\b[^;&|\n]*\s(/\S+)", text)
    )
    if not contained:
        return tuple(sorted(there))
    inside: list[str] = []
    for item in options:
        bound = re.match(r"(?:-v|--volume)[=\s]+([^\s:]+):([^\s:]+)", item.text)
        if bound and any(bound[1] == t or bound[1].startswith(f"{t}/") for t in there):
            inside.append(bound[2])
    return tuple(inside)
