# Both stages are of one Python and one Debian release, so that what is installed here runs there.
FROM python:3.11-slim-bookworm AS builder
WORKDIR /src
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc=4:12.* libc6-dev=2.36-* \
 && rm -rf /var/lib/apt/lists/* \
 && python -m venv --without-pip /opt/router
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md gunicorn.conf.py ./
COPY app ./app
# The root may be read-only at run time, so the bytecode is made here. It is never compared with its source again:
# copying the files to the last stage may change their times.
# No image is made that would run uncompiled.
RUN PIP_CONSTRAINT=constraints.txt pip --python /opt/router install --no-cache-dir --no-compile -c constraints.txt '.[otel]' \
 && /opt/router/bin/python -P -c 'from app.compiled import form; assert form() == "compiled", form()' \
 && /opt/router/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/router/lib

FROM python:3.11-slim-bookworm
ENV PATH=/opt/router/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /srv/router
COPY --from=builder /opt/router /opt/router
COPY --chmod=644 gunicorn.conf.py ./
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
# BIND's default. Whoever moves BIND replaces the health check too; Kubernetes ignores it and has probes of its own.
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener as b; b(ProxyHandler({})).open('http://127.0.0.1:8080/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["gunicorn", "-c", "gunicorn.conf.py"]
