"""What a model costs on the board: published cases as published, the rules near them, everything else graded."""

from dataclasses import replace

import pytest

from qwen_vl_axera.board.costs import CARD, GIB, KNOWN, ONE_RUN, Case, Model, costs, decode_ms, table

CHUNKS = tuple(range(128, 1153, 128))
QWEN25_3B = Model("qwen2_5_vl", 668_700_000, 36, 77_073_920, 151936 * 2048, 151936 * 2048, 256)
QWEN25_7B = Model("qwen2_5_vl", 676_600_000, 28, 233_057_792, 152064 * 3584, 152064 * 3584, 512)
QWEN3_2B = Model("qwen3_vl", 406_900_000, 28, 50_331_648, 151936 * 2048, 151936 * 2048, 1024)
QWEN3_4B = Model("qwen3_vl", 415_000_000, 36, 100_925_440, 151936 * 2560, 151936 * 2560, 1024)

PICTURE = Case((448, 448), 1, 1, 1024, 256, 320, 1023)
VIDEO = Case((308, 308), 4, 8, 484, 121, 512, 1023)
QWEN3_VIDEO = Case((384, 384), 4, 8, 576, 144, 128, 2047, CHUNKS)
PUBLISHED = [
    (QWEN25_3B, PICTURE),
    (QWEN25_3B, VIDEO),
    (QWEN25_3B, replace(PICTURE, prefill_len=128, chunks=CHUNKS)),
    (QWEN25_3B, replace(VIDEO, prefill_len=128, chunks=CHUNKS)),
    (QWEN3_2B, QWEN3_VIDEO),
    (QWEN3_4B, QWEN3_VIDEO),
]


@pytest.mark.parametrize(("model", "case"), PUBLISHED)
def test_published_cases_are_shown_as_published(model, case):
    found = costs(model, case)
    known = KNOWN[model.tower, model.layers, case.size, case.frames, bool(case.chunks)]
    assert (found.encoder_ms.value, found.first_token_ms.value) == (known.encoder, known.first)
    assert found.tokens_per_second.value == known.rate
    assert {found.encoder_ms.grade, found.first_token_ms.grade, found.tokens_per_second.grade} == {"measured"}
    assert found.memory.grade == ("measured" if known.memory else "inferred")


@pytest.mark.parametrize(("model", "case"), PUBLISHED)
def test_the_rules_come_near_the_published_cases(model, case, monkeypatch):
    known = KNOWN[model.tower, model.layers, case.size, case.frames, bool(case.chunks)]
    monkeypatch.setattr("qwen_vl_axera.board.costs.KNOWN", {})
    found = costs(model, case)
    assert found.first_token_ms.grade == "inferred"
    assert found.encoder_ms.value == pytest.approx(known.encoder, rel=0.06)
    assert found.first_token_ms.value == pytest.approx(known.first, rel=0.08)
    # One card gave 4.95 tokens a second in chunks where another gave 6.1 without: no rule of ours has a reason for it.
    assert found.tokens_per_second.value == pytest.approx(known.rate, rel=0.1 if known.rate != 4.95 else 0.16)
    for value, published in ((found.memory, known.memory), (found.package, known.package)):
        assert published is None or value.value == pytest.approx(published, rel=0.07)


def test_another_prefill_or_weight_type_is_not_the_published_case():
    assert costs(QWEN25_3B, replace(VIDEO, prefill_len=640)).first_token_ms.grade == "inferred"
    assert costs(QWEN25_3B, replace(VIDEO, weight_type="s4")).memory.grade == "inferred"
    assert set(ONE_RUN) == {case.frames for _, case in PUBLISHED}


def test_larger_models_need_four_bits_on_a_card_of_8_gb():
    assert costs(QWEN25_7B, VIDEO).memory.value > CARD > costs(QWEN25_7B, replace(VIDEO, weight_type="s4")).memory.value


def test_four_bits_decode_faster_by_less_than_their_bytes():
    ratio = decode_ms(QWEN3_2B, "s8").whole / decode_ms(QWEN3_2B, "s4").whole
    assert 1.2 < ratio < 1.4  # 11.93 tokens a second were reported at s4, 9.5 at s8


def test_the_question_s_room_and_sizes_beyond_the_published_ones():
    assert costs(QWEN25_3B, replace(VIDEO, text=21)).room == 7
    assert costs(QWEN25_3B, replace(VIDEO, steps=8, frames=16)).room < 0
    beyond = costs(QWEN25_3B, replace(VIDEO, size=(896, 896), patches=4096, visual=1024))
    assert beyond.encoder_ms.grade == "inferred"
    assert costs(QWEN25_3B, replace(VIDEO, size=(252, 448), patches=576, visual=144)).encoder_ms.grade == "interpolated"
    assert costs(replace(QWEN25_3B, tower="another"), VIDEO).first_token_ms is None


def test_the_table_marks_what_is_not_published():
    text = table([costs(QWEN25_3B, VIDEO), costs(QWEN25_3B, replace(VIDEO, steps=8, frames=16))])
    first, second = text.splitlines()[1:3]
    assert "5.4 s  " in first and f"{4.4 * GIB / GIB:.1f} GiB  " in first and "?" not in first
    assert "too long" in second and "s?" in second
