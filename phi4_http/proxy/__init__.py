"""The repairing proxy: an OpenAI-compatible server that makes Phi-4-reasoning-plus behave for every client.

    repair   what is asked and what is answered, as values and bytes     pure
    refused  an error as status and error object                         pure
    asgi     the application, on the asynchronous client
    serve    the application in an embedded host
"""
