"""What has to be done before an event loop ends is done once, whoever does it."""

from __future__ import annotations

import asyncio

from socketspec.concurrency.loop_end import LoopEnd


def test_it_is_done_when_the_event_loop_ends() -> None:
    done: list[str] = []

    async def main() -> None:
        async def end() -> None:
            await asyncio.sleep(0)  # the loop still works
            done.append("end")

        ending = LoopEnd(end)
        await ending.watch()
        kept.append(ending)
        assert done == []

    kept: list[LoopEnd] = []
    asyncio.run(main())
    assert done == ["end"]


def test_what_was_done_before_is_not_done_again() -> None:
    done: list[str] = []

    async def main() -> None:
        async def end() -> None:
            done.append("end")
            await ending.now()  # what ends may ask for the end

        ending = LoopEnd(end)
        await ending.now()
        assert done == [], "nothing before it watches"
        await ending.watch()
        await ending.now()
        await ending.now()
        assert done == ["end"]

    asyncio.run(main())
    assert done == ["end"]
