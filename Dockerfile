# The server on a CPU: docker build --tag speechquant . && docker run --publish 8000:8000
#     --volume ./models:/models:ro speechquant /models/whisper-w8a8
FROM python:3.11-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim
# quantize: bundles are rewritten for the processor. serve,openvino for Intel's, movies for m4a.
ARG EXTRAS=serve,quantize
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt \
    "$(echo /wheels/*.whl)[${EXTRAS}]"
RUN useradd --uid 10001 --create-home speechquant
USER 10001
WORKDIR /home/speechquant
VOLUME /models
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["speechquant", "serve", "--host", "0.0.0.0", "--port", "8000"]
