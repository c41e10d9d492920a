import ssl

from gunicorn.config import Config

def ssl_context(conf: Config) -> ssl.SSLContext: ...
