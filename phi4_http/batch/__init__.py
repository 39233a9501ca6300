"""Many questions, asked in any order by several servers, each answered once.

lines       questions from lines of JSON, checked      pure
answered    what an answer is, and its line            pure
schedule    who is asked what, and when again          pure
answers     the file of answers
work        what runs it all, on asyncio
"""
