"""Compose, check against signatures, build, save.

The signature is the schema. A config node with `_target_: whet.group.file.name` stands for a call of that
callable; its keyword-only parameters (for a class: its constructor's) are the node's keys, their
annotations the types, their defaults the only defaults. `complete` writes the defaults into a node when its
YAML is read, so every setting shows in `--cfg job` and can be overridden by name; `build` checks the whole
tree and makes its objects before anything heavy is loaded.

A class is instantiated; a function becomes a `functools.partial` that waits for its positional arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from whet.errors import ConfigError, WhetError, nearest, one_line

TARGET = "_target_"
SPACE = "_space_"
"""Key of a node under which it says how a sweep searches it; no setting."""
GROUPS = (
    "model",
    "task",
    "peft",
    "augmentation",
    "objective",
    "averaging",
    "optimizer",
    "scheduler",
    "engine",
    "tracking",
    "paths",
    "debug",
    "sweep",
)
"""Config groups that name code; each `_target_` of a group lives in the package of the same name."""
PACKAGES = (*GROUPS, "data", "lexicon")

Node = dict[str, Any]
Method = Callable[..., Any]
"""Annotation of a part that is a function with its settings bound (peft, objective, optimizer, …)."""


class Component:
    """Marker base of every class that a config node may build."""


class _AbsentType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Absent(metaclass=_AbsentType):
    """Stands for a name imported only while type checking (torch and the like)."""


def conf_dir() -> Path:
    """The packaged `conf/`: inside the wheel, or beside `src/` in a checkout."""
    return _shipped("conf")


def sweeps_dir() -> Path:
    """The packaged `sweeps/`."""
    return _shipped("sweeps")


def _shipped(name: str) -> Path:
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parents[2] / name


# ---------------------------------------------------------------- targets


def resolve(target: object, key: str = TARGET) -> Method:
    """The callable that `_target_` names.

    Only public callables defined in `whet.<group>` are allowed, and those of packages that the environment
    variable WHET_TARGETS lists (comma separated): a config file must not be able to run arbitrary code.

    Raises:
        ConfigError: not allowed, not found, or not a callable.
    """
    name = str(target)
    module_name, _, attribute = name.rpartition(".")
    if not _allowed(module_name) or attribute.startswith("_"):
        raise ConfigError(
            key, "not allowed: a target is a public callable of whet.<group> " + _extra_hint(), name
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(str(error.name)):
            raise
        raise ConfigError(key, f"no module {module_name}; {_near_module(module_name)}", name) from None
    found = getattr(module, attribute, None)
    if not callable(found) or getattr(found, "__module__", None) != module_name:
        raise ConfigError(key, f"not found; {nearest(attribute, _public(module))}", name)
    return typing.cast(Method, found)


def _allowed(module_name: str) -> bool:
    own = module_name.split(".")
    if own[0] == "whet":
        return len(own) > 1 and own[1] in PACKAGES
    extra = [name.strip() for name in os.environ.get("WHET_TARGETS", "").split(",")]
    return any(name and (module_name == name or module_name.startswith(name + ".")) for name in extra)


def _extra_hint() -> str:
    return "(or of a package listed in the environment variable WHET_TARGETS)"


def _public(module: types.ModuleType) -> list[str]:
    return [
        n for n, v in vars(module).items() if callable(v) and v.__module__ == module.__name__ and n[0] != "_"
    ]


def _near_module(module_name: str) -> str:
    folder = Path(__file__).parent.joinpath(*module_name.split(".")[1:-1])
    names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"] if folder.is_dir() else []
    return nearest(module_name.rpartition(".")[2], names)


@functools.cache
def signature(target: Method) -> dict[str, inspect.Parameter]:
    """The config-facing parameters of `target` with evaluated annotations: its keyword-only ones."""
    hints = _hints(target)
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            found[name] = parameter.replace(annotation=hints.get(name, Any))
    return found


def _hints(target: Method) -> dict[str, Any]:
    absent: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(target, localns=absent, include_extras=True)
        except NameError as error:
            if error.name is None or error.name in absent:
                raise
            absent[error.name] = _Absent


# ---------------------------------------------------------------- complete


def complete(node: Any) -> Any:
    """Write the signature's defaults into every `_target_` node that doesn't state them."""
    if isinstance(node, list):
        return [complete(item) for item in node]
    if not isinstance(node, dict):
        return node
    filled = {key: complete(value) for key, value in node.items()}
    if TARGET not in filled:
        return filled
    try:
        parameters = signature(resolve(filled[TARGET]))
    except ConfigError:  # build() reports it, with its key
        return filled
    for name, parameter in parameters.items():
        if name not in filled and parameter.default is not inspect.Parameter.empty:
            filled[name] = to_config(_default(resolve(filled[TARGET]), name, parameter))
    return filled


def _default(target: Method, name: str, parameter: inspect.Parameter) -> Any:
    if dataclasses.is_dataclass(target):
        field = next(f for f in dataclasses.fields(target) if f.name == name)
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def _method(cls: type) -> Method:
    return cls


def to_config(value: Any) -> Any:
    """A value as it would stand in YAML."""
    if isinstance(value, Component):
        fields = {name: to_config(getattr(value, name)) for name in signature(_method(type(value)))}
        return {TARGET: f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(key): to_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


# ---------------------------------------------------------------- check and build


def build(config: Mapping[str, Any], target: Method, key: str = "") -> functools.partial[Any]:
    """Check `config` and return `target` with the built parts bound, ready to be called.

    Nested nodes are checked and built too; nothing heavy is touched.

    Raises:
        ConfigError: names the key, the value and what would be right.
    """
    parameters = signature(target)
    given = {name: value for name, value in config.items() if name not in (TARGET, SPACE)}
    _no_strangers(given, parameters, key)
    bound = {}
    for name, parameter in parameters.items():
        where = f"{key}.{name}" if key else name
        if name in given and given[name] != "???":
            bound[name] = _value(given[name], parameter.annotation, where)
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(where, f"must be given: {where}=…")
    return functools.partial(target, **bound)


def _no_strangers(given: Mapping[str, Any], parameters: Mapping[str, Any], key: str) -> None:
    for name, value in given.items():
        if name not in parameters:
            where = f"{key}.{name}" if key else str(name)
            raise ConfigError(where, f"unknown key; {nearest(name, parameters)}", value)


def _value(value: Any, annotation: Any, key: str) -> Any:
    if isinstance(value, Mapping) and TARGET in value:
        return part(value, annotation, key)
    inner, container = _component_of(annotation)
    if inner is not None:
        return _parts(value, inner, container, annotation, key)
    return _plain(value, annotation, key)


def _parts(value: Any, inner: Any, container: Any, annotation: Any, key: str) -> Any:
    if value is None and _optional(annotation):
        return None
    if container is dict and isinstance(value, Mapping):
        return {name: _value(item, inner, f"{key}.{name}") for name, item in value.items()}
    if container is list and isinstance(value, (list, tuple)):
        return [_value(item, inner, f"{key}.{place}") for place, item in enumerate(value)]
    return part(value, annotation, key)


def part(node: Any, annotation: Any, key: str) -> Any:
    """Check and build one component node.

    Args:
        node: of a composed or saved config; without a target inside another, where only one class will do.
        annotation: the class that it must make an object of, or `Method` for a function.
        key: where it stands in the config.

    Returns:
        The object, or the function with its settings bound.

    Raises:
        ConfigError: not a component's node, another component, or wrong settings.
    """
    where = f"{key}.{TARGET}"
    only = _component_of(annotation)[0]
    if isinstance(node, Mapping) and TARGET not in node and "." in key and _is_final(only):
        node = {TARGET: f"{only.__module__}.{only.__qualname__}", **node}
    if not (isinstance(node, Mapping) and TARGET in node):
        raise ConfigError(key, f"must be a node with {TARGET}: whet.…", node)
    target = resolve(node[TARGET], where)
    _fits(target, annotation, where)
    group = key.split(".")[0]
    if "." not in key and group in GROUPS and target.__module__.split(".")[0] == "whet":
        _in_group(target, group, where)
    bound = build(node, target, key)
    if not inspect.isclass(target):
        return bound
    try:
        return bound()
    except ConfigError as error:
        raise error.under(key) from None


def _is_final(component: Any) -> bool:
    """Whether a node for it can be of this class only, and needn't say so."""
    return inspect.isclass(component) and not inspect.isabstract(component) and not component.__subclasses__()


def _in_group(target: Method, group: str, key: str) -> None:
    if target.__module__.split(".")[1] != group:
        raise ConfigError(
            key, f"a {group} is built by whet.{group}.…", f"{target.__module__}.{target.__name__}"
        )


def _fits(target: Method, annotation: Any, key: str) -> None:
    wanted = _component_of(annotation)[0]
    made = target if inspect.isclass(target) else None
    name = f"{target.__module__}.{target.__name__}"
    if wanted is None and annotation not in (Any, Method, _Absent):
        raise ConfigError(key, "this key takes a plain value, not a component", name)
    if wanted is not None and inspect.isclass(wanted) and not (made and issubclass(made, wanted)):
        raise ConfigError(key, f"does not make a {wanted.__name__}", name)
    if annotation == Method and made is not None:
        raise ConfigError(key, "must name a function", name)


def _component_of(annotation: Any) -> tuple[Any, Any]:
    """(component class, dict | list | None) for X, X | None, list[X], dict[str, X]; (None, None) else."""
    if inspect.isclass(annotation) and issubclass(annotation, Component):
        return annotation, None
    if annotation == Method:
        return Method, None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            found = _component_of(argument)
            if found[0] is not None:
                return found
    if origin in (dict, list) and arguments:
        inner, _ = _component_of(arguments[-1])
        return (inner, origin) if inner is not None else (None, None)
    return None, None


def _optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


@functools.cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _plain(value: Any, annotation: Any, key: str) -> Any:
    from pydantic import ValidationError

    if annotation is Any:
        return value
    try:
        return _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        failed = error
    try:  # `labels: [1, 2]`: numbers where names belong
        return _adapter(annotation).validate_json(json.dumps(_named(value)), strict=True)
    except ValidationError:
        raise ConfigError(key, _reason(failed, value, annotation), value) from None


def _named(value: Any) -> Any:
    """Numbers as text, at any depth."""
    if isinstance(value, Mapping):
        return {name: _named(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _reason(error: Any, value: Any, annotation: Any) -> str:
    choices = _literals(annotation)
    if choices:
        return f"not a choice; {nearest(value, choices)}"
    reasons = {one_line(item["msg"].removeprefix("Value error, ")) for item in error.errors()}
    readable = {reason.replace("Input should be", "must be").replace("Input", "it") for reason in reasons}
    return "; or ".join(sorted(readable))


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is typing.Literal:
        return [str(item) for item in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [name for item in get_args(annotation) for name in _literals(item)]
    return []


# ---------------------------------------------------------------- compose, walk, save


def compose(config_name: str, overrides: list[str] | None = None) -> Node:
    """Compose one of whet's commands' configs outside the command line (tests, notebooks, other commands).

    Returns:
        The resolved config as plain containers.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="whet"):
        return to_plain(hydra_compose(config_name, overrides or []))


def to_plain(config: Any) -> Node:
    """An OmegaConf config as plain containers with interpolations resolved.

    Raises:
        ConfigError: an interpolation can't be resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or "config"), one_line(error.msg)) from None
    assert isinstance(plain, dict)  # a command's config is a mapping
    return {str(name): _settings(value) for name, value in plain.items() if name != "hydra"}


def _settings(value: Any) -> Any:
    """Without what a node says to sweeps."""
    if isinstance(value, dict):
        return {name: _settings(item) for name, item in value.items() if name != SPACE}
    return [_settings(item) for item in value] if isinstance(value, list) else value


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf value) for every leaf; lists count as leaves."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, config


def save(config: Node, path: Path) -> None:
    """Write `config` as YAML, secrets masked."""
    from omegaconf import OmegaConf

    from whet.secrets import mask

    path.write_text(OmegaConf.to_yaml(OmegaConf.create(mask(config))), encoding="utf-8")


def load(path: Path) -> Node:
    """Read a config that `save` wrote.

    Raises:
        WhetError: it isn't there.
    """
    from omegaconf import OmegaConf

    if not path.is_file():
        raise WhetError(f"{path}: no such config file")
    return to_plain(OmegaConf.load(path))
