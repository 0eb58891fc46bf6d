"""MLServer's runtime for ONNX, in the event loop, with its own codecs for numbers."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from oip_session import open_session


class OnnxRuntime(MLModel):
    async def load(self) -> bool:
        self.session = open_session(self.settings.parameters.uri)
        self.names = [output.name for output in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        answers = self.session.run(self.names, feed)
        outputs = [
            NumpyCodec.encode_output(name, answer)
            for name, answer in zip(self.names, answers, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
