# One image for the lab, the workers and the two small services beside them. It needs neither BuildKit nor a registry
# of its own: behind a proxy give the usual build arguments (HTTP_PROXY, HTTPS_PROXY, NO_PROXY); with a CA or a package
# index of your own, name a base image that knows them: --build-arg PYTHON_IMAGE=…
ARG PYTHON_IMAGE=python:3.13-slim

# What bankrun needs, hash-checked: this changes only with the lock file.
FROM ${PYTHON_IMAGE} AS locked
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv --without-pip /opt/bankrun
COPY requirements.lock /build/
RUN python3 -m pip --python /opt/bankrun/bin/python install --require-hashes --no-deps -r /build/requirements.lock \
 && python3 -m pip --python /opt/bankrun/bin/python check

# bankrun itself, as a wheel, made with the locked build backend.
FROM locked AS wheel
COPY pyproject.toml README.md LICENSE /build/
COPY bank /build/bank
COPY workers /build/workers
COPY bankrun /build/bankrun
COPY lessons /build/lessons
RUN python3 -m pip --python /opt/bankrun/bin/python wheel --no-deps --no-build-isolation --wheel-dir /dist /build

# The same packages without the build backend: nothing of ours can build anything.
FROM locked AS runtime
RUN python3 -m pip --python /opt/bankrun/bin/python uninstall -y hatchling pathspec pluggy tomlkit trove-classifiers \
 && python3 -m pip --python /opt/bankrun/bin/python check

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin bankrun \
 && install -d -o bankrun -g bankrun /run/secrets /secrets/postgres /secrets/redis /secrets/rabbitmq /secrets/lab /secrets/worker \
    /var/lib/bankrun
COPY --from=runtime /opt/bankrun /opt/bankrun
COPY --from=wheel /dist /tmp/dist
RUN python3 -m pip --python /opt/bankrun/bin/python install --no-index --no-deps --no-cache-dir \
    --root-user-action ignore --disable-pip-version-check /tmp/dist/*.whl && rm -r /tmp/dist
COPY tools/make-secrets tools/make-roles tools/forward-ports /opt/bankrun/bin/
# The working directory holds the scripts only, so what is imported is what was installed.
COPY scripts /app/scripts
WORKDIR /app
ENV PATH=/opt/bankrun/bin:$PATH PYTHONUNBUFFERED=1 BANKRUN_HEARTBEAT_FILE=/tmp/bankrun.alive
USER bankrun
# A worker touches the file as long as it listens to the broker: a question that costs no Python start-up.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD test -n "$(find "$BANKRUN_HEARTBEAT_FILE" -newermt '-15 seconds')"
CMD ["bankrun", "worker"]
