"""Answers to a question about a clip, as the records have them."""

from qwen_vl_axera.record import Amount, Count, record


@record
class AnswerToken:
    """A token of an answer, and the probability that the language model gave it."""

    id: Count
    text: str
    probability: Amount


@record
class Difference:
    """The first token that differs; None on the side whose answer has ended."""

    token: Count
    reference: AnswerToken | None = None
    onnx: AnswerToken | None = None


@record
class Answer:
    """Greedy text from transformers' features and from the graph's.

    Attributes:
        prompt: the question.
        reference, onnx: the words.
        tokens: of the reference.
        equal: token by token.
        reference_ids, onnx_ids: the tokens, a stop token included.
        complete: whether the reference ended by itself.
        first_difference: where they differ.
    """

    prompt: str
    reference: str
    onnx: str
    tokens: Count
    equal: bool
    reference_ids: list[Count]
    onnx_ids: list[Count]
    complete: bool
    first_difference: Difference | None = None

    def __post_init__(self):
        if self.equal and self.reference_ids != self.onnx_ids:
            raise ValueError("equal, but reference_ids and onnx_ids differ")
        if self.tokens != len(self.reference_ids):
            raise ValueError(f"tokens is {self.tokens}, reference_ids has {len(self.reference_ids)}")
