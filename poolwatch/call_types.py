"""What a type checker is told of ``apply``, ``apply_async``, ``starmap``, ``starmap_async`` and
the executor's ``map``.

Arguments in a tuple are checked against the function's parameters. As typing has no word for "a
call with these arguments in a tuple", there is one overload for each kind of right call:

1. A tuple whose elements are known, checked one by one.
2. No arguments at all.
3. With ``kwds`` nothing is checked: neither checker can tell which names are still free.
4. Not a tuple, or with a list, dict, set or tuple inside: taken as it is. A checker gives a display
   like ``[1, 2]`` its type before it looks at the function, and would refuse it for
   ``list[float]``.
5. A tuple of unknown length, against functions that can be called with one to four arguments of
   its kind. As a checker takes one of known length for such a tuple too, the wrong number of
   arguments, none included, is not found where all are of a kind that the function begins with. An
   overload that caught those would also catch ``args`` of a function with ``*args: Any``, and right
   programs would get results of an unknown type.

What is given as ``Sequence`` or ``Iterable`` cannot be told from a tuple, and is refused, although
it runs: make it a list. So are rows of ``starmap`` that differ both in length and in kind.

The executor's ``map`` has an overload for each number of iterables up to four; of more, nothing is
checked.

The methods themselves are written with the plain types that multiprocessing has; the decorators
here do nothing when the program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import os
    from collections import deque
    from typing import Protocol, TypeAlias, TypedDict, overload

    from typing_extensions import TypeVarTuple, Unpack

    from poolwatch.executor_map import ResultIterator
    from poolwatch.map_results import MapResult
    from poolwatch.policies import LostWorkerPolicy
    from poolwatch.results import ApplyResult

    T = TypeVar("T")
    A = TypeVar("A")
    Ts = TypeVarTuple("Ts")

    Display: TypeAlias = list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...]
    Any1: TypeAlias = tuple[Display, Unpack[tuple[Any, ...]]]
    Any2: TypeAlias = tuple[Any, Display, Unpack[tuple[Any, ...]]]
    Any3: TypeAlias = tuple[Any, Any, Display, Unpack[tuple[Any, ...]]]
    Any4: TypeAlias = tuple[Any, Any, Any, Display, Unpack[tuple[Any, ...]]]
    Any5: TypeAlias = tuple[Any, Any, Any, Any, Display, Unpack[tuple[Any, ...]]]
    Any6: TypeAlias = tuple[Any, Any, Any, Any, Any, Display, Unpack[tuple[Any, ...]]]
    Unchecked: TypeAlias = (
        list[Any]
        | Iterator[Any]
        | range
        | set[Any]
        | frozenset[Any]
        | deque[Any]
        | Any1
        | Any2
        | Any3
        | Any4
        | Any5
        | Any6
    )
    Four: TypeAlias = (
        Callable[[A], T] | Callable[[A, A], T] | Callable[[A, A, A], T] | Callable[[A, A, A, A], T]
    )
    OnError: TypeAlias = Callable[[BaseException], object]

    class Options(TypedDict, total=False):
        """Options of ``apply_async`` that are given by name."""

        error_callback: OnError | None
        accept_callback: Callable[[int, float], object] | None
        timeout_callback: Callable[..., object] | None
        waitforslot: bool | None
        soft_timeout: float | None
        timeout: float | None
        lost_worker_timeout: float | None
        callbacks_propagate: tuple[type[BaseException], ...]
        correlation_id: str | None
        lost_worker_policy: LostWorkerPolicy | None
        tag: object
        priority: int
        env: Mapping[str, str] | None
        cwd: str | os.PathLike[str] | None
        memory_limit: int | None

    class ApplyAsync(Protocol):
        """The type of ``Pool(...).apply_async``."""

        @overload
        def __call__(
            self,
            func: Callable[[Unpack[Ts]], T],
            args: tuple[Unpack[Ts]],
            *,
            callback: Callable[[T], object] | None = None,
            **options: Unpack[Options],
        ) -> ApplyResult[T]: ...
        @overload
        def __call__(
            self,
            func: Callable[[], T],
            *,
            callback: Callable[[T], object] | None = None,
            **options: Unpack[Options],
        ) -> ApplyResult[T]: ...
        @overload
        def __call__(
            self,
            func: Callable[..., T],
            args: Iterable[Any],
            kwds: Mapping[str, Any],
            callback: Callable[[T], object] | None = None,
            error_callback: OnError | None = None,
            accept_callback: Callable[[int, float], object] | None = None,
            timeout_callback: Callable[..., object] | None = None,
            waitforslot: bool | None = None,
            soft_timeout: float | None = None,
            timeout: float | None = None,
            lost_worker_timeout: float | None = None,
            callbacks_propagate: tuple[type[BaseException], ...] = (),
            correlation_id: str | None = None,
            *,
            lost_worker_policy: LostWorkerPolicy | None = None,
            tag: object = None,
            priority: int = 0,
            env: Mapping[str, str] | None = None,
            cwd: str | os.PathLike[str] | None = None,
            memory_limit: int | None = None,
        ) -> ApplyResult[T]: ...
        @overload
        def __call__(
            self,
            func: Callable[..., T],
            *,
            kwds: Mapping[str, Any],
            callback: Callable[[T], object] | None = None,
            **options: Unpack[Options],
        ) -> ApplyResult[T]: ...
        @overload
        def __call__(
            self,
            func: Callable[..., T],
            args: Unchecked,
            *,
            callback: Callable[[T], object] | None = None,
            **options: Unpack[Options],
        ) -> ApplyResult[T]: ...
        @overload
        def __call__(
            self,
            func: Four[A, T],
            args: tuple[A, ...],
            *,
            callback: Callable[[T], object] | None = None,
            **options: Unpack[Options],
        ) -> ApplyResult[T]: ...

    class Apply(Protocol):
        """The type of ``Pool(...).apply``."""

        @overload
        def __call__(self, func: Callable[[Unpack[Ts]], T], args: tuple[Unpack[Ts]]) -> T: ...
        @overload
        def __call__(self, func: Callable[[], T]) -> T: ...
        @overload
        def __call__(
            self, func: Callable[..., T], args: Iterable[Any], kwds: Mapping[str, Any]
        ) -> T: ...
        @overload
        def __call__(self, func: Callable[..., T], *, kwds: Mapping[str, Any]) -> T: ...
        @overload
        def __call__(self, func: Callable[..., T], args: Unchecked) -> T: ...
        @overload
        def __call__(self, func: Four[A, T], args: tuple[A, ...]) -> T: ...

    class StarmapAsync(Protocol):
        """The type of ``Pool(...).starmap_async``."""

        @overload
        def __call__(
            self,
            func: Callable[[Unpack[Ts]], T],
            iterable: Iterable[tuple[Unpack[Ts]]],
            chunksize: int | None = None,
            callback: Callable[[list[T]], object] | None = None,
            error_callback: OnError | None = None,
            *,
            progress: bool = False,
        ) -> MapResult[T]: ...
        @overload
        def __call__(
            self,
            func: Callable[..., T],
            iterable: Iterable[Unchecked],
            chunksize: int | None = None,
            callback: Callable[[list[T]], object] | None = None,
            error_callback: OnError | None = None,
            *,
            progress: bool = False,
        ) -> MapResult[T]: ...
        @overload
        def __call__(
            self,
            func: Four[A, T],
            iterable: Iterable[tuple[A, ...]],
            chunksize: int | None = None,
            callback: Callable[[list[T]], object] | None = None,
            error_callback: OnError | None = None,
            *,
            progress: bool = False,
        ) -> MapResult[T]: ...

    class Starmap(Protocol):
        """The type of ``Pool(...).starmap``."""

        @overload
        def __call__(
            self,
            func: Callable[[Unpack[Ts]], T],
            iterable: Iterable[tuple[Unpack[Ts]]],
            chunksize: int | None = None,
            *,
            progress: bool = False,
        ) -> list[T]: ...
        @overload
        def __call__(
            self,
            func: Callable[..., T],
            iterable: Iterable[Unchecked],
            chunksize: int | None = None,
            *,
            progress: bool = False,
        ) -> list[T]: ...
        @overload
        def __call__(
            self,
            func: Four[A, T],
            iterable: Iterable[tuple[A, ...]],
            chunksize: int | None = None,
            *,
            progress: bool = False,
        ) -> list[T]: ...

    A1 = TypeVar("A1")
    A2 = TypeVar("A2")
    A3 = TypeVar("A3")
    A4 = TypeVar("A4")

    class ExecutorMap(Protocol):
        """The type of ``ProcessPoolExecutor(...).map``."""

        @overload
        def __call__(
            self,
            fn: Callable[[A1], T],
            iterable: Iterable[A1],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
        ) -> ResultIterator[T]: ...
        @overload
        def __call__(
            self,
            fn: Callable[[A1, A2], T],
            first: Iterable[A1],
            second: Iterable[A2],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
        ) -> ResultIterator[T]: ...
        @overload
        def __call__(
            self,
            fn: Callable[[A1, A2, A3], T],
            first: Iterable[A1],
            second: Iterable[A2],
            third: Iterable[A3],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
        ) -> ResultIterator[T]: ...
        @overload
        def __call__(
            self,
            fn: Callable[[A1, A2, A3, A4], T],
            first: Iterable[A1],
            second: Iterable[A2],
            third: Iterable[A3],
            fourth: Iterable[A4],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
        ) -> ResultIterator[T]: ...
        @overload
        def __call__(
            self,
            fn: Callable[..., T],
            first: Iterable[Any],
            second: Iterable[Any],
            third: Iterable[Any],
            fourth: Iterable[Any],
            fifth: Iterable[Any],
            /,
            *more: Iterable[Any],
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
        ) -> ResultIterator[T]: ...

    C = TypeVar("C", covariant=True)

    class Method(Protocol[C]):
        """A method whose type, once bound, is another than it is written with."""

        @overload
        def __get__(self, pool: None, owner: type) -> Callable[..., Any]: ...
        @overload
        def __get__(self, pool: object, owner: type) -> C: ...

    def apply_async(method: Callable[..., object]) -> Method[ApplyAsync]: ...
    def apply(method: Callable[..., object]) -> Method[Apply]: ...
    def starmap_async(method: Callable[..., object]) -> Method[StarmapAsync]: ...
    def starmap(method: Callable[..., object]) -> Method[Starmap]: ...
    def executor_map(method: Callable[..., object]) -> Method[ExecutorMap]: ...

else:

    def _as_it_is(method: Callable[..., Any]) -> Callable[..., Any]:
        return method

    apply = apply_async = starmap = starmap_async = executor_map = _as_it_is
