"""Threads keep the order, and the queue is bounded."""

import threading
import time

import pytest

from carvana.threads import map_in_threads


def test_threads_keep_the_order():
    def slowly(number):
        time.sleep(0.01 * (number % 3))
        return number, threading.current_thread().name

    results = list(map_in_threads(slowly, range(20), threads=3, waiting=5))
    assert [number for number, _ in results] == list(range(20))
    assert threading.main_thread().name not in {name for _, name in results}


def test_items_are_not_asked_for_ahead_of_the_queue():
    asked, freed = [], threading.Event()

    def items():
        for number in range(10):
            asked.append(number)
            yield number

    results = map_in_threads(lambda number: freed.wait(5) and number, items(), threads=2, waiting=3)
    taker = threading.Thread(target=next, args=(results,))
    taker.start()
    time.sleep(0.2)
    assert asked == [0, 1, 2]
    freed.set()
    taker.join()
    assert list(results) == list(range(1, 10))


def test_an_error_in_a_thread_is_raised():
    results = map_in_threads(lambda number: 1 / number, [1, 0, 1], threads=2, waiting=2)
    with pytest.raises(ZeroDivisionError):
        list(results)
