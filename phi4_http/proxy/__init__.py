"""The repairing proxy: an OpenAI-compatible server that makes Phi-4-reasoning-plus behave for every client.

repair      a client's request made right                          pure
answer      a reply's events as the bytes of either answer         pure
refused     an error as status and error object                    pure
gate        whose requests are answered; what is said of models    pure
upstream    the one server behind it, on the asynchronous client
asgi        the application
configured  the application as settings say
serve       the application in an embedded host
"""
