"""What the model says in the composed exchanges: questions, thoughts and solutions that read like Phi-4's."""

from __future__ import annotations

TRAINS = (
    "A train leaves a station at 9:00 at 60 km/h. A second one leaves at 9:40 on the same line at 90 km/h. "
    "When and where does it catch up?"
)
TRAINS_THOUGHT = """\
Okay, let me analyse the question. Two trains start from the same station and go the same way. The first leaves at \
9:00 and goes 60 km/h, the second leaves at 9:40 and goes 90 km/h. We want the time and the place where the second \
has caught up.

Step 1: the head start. Between 9:00 and 9:40 there are 40 minutes, that is 2/3 of an hour. In this time the first \
train covers 60 × 2/3 = 40 km. So at 9:40 it is 40 km ahead.

Step 2: the closing speed. Both go in the same direction, so the gap shrinks by 90 − 60 = 30 km each hour.

Step 3: the time to close the gap: 40 km ÷ 30 km/h = 4/3 h, which is 80 minutes. From 9:40, 80 minutes later is 11:00.

Step 4: the place. The second train goes 90 × 4/3 = 120 km.

Let me verify with the first train: from 9:00 to 11:00 it travels 2 h × 60 km/h = 120 km. Both are at 120 km at 11:00, \
so this fits. Wait, did I count the 40 minutes twice? No: the first train's two hours include them, the second one's \
80 minutes do not. Good.
"""
TRAINS_SOLUTION = """\
**Head start.** By 9:40 the first train has gone 60 km/h × ⅔ h = 40 km.

**Catching up.** The gap shrinks by 90 − 60 = 30 km/h, so it takes 40 ÷ 30 = 4/3 h = 80 min.

**Check.** First train: 2 h × 60 km/h = 120 km. Second train: 4/3 h × 90 km/h = 120 km.

The second train catches up at **11:00**, **120 km** from the station."""

PRIME = "Is 391 a prime number?"
PRIME_THOUGHT = """\
Let me think about whether 391 is prime. It is enough to try primes up to the square root. Since 19² = 361 and \
20² = 400, I only need primes up to 19: 2, 3, 5, 7, 11, 13, 17, 19.

391 is odd, so 2 is out. The digits add up to 3 + 9 + 1 = 13, so 3 is out. It does not end in 0 or 5. For 7: \
7 × 55 = 385, remainder 6. For 11: 3 − 9 + 1 = −5, no. For 13: 13 × 30 = 390, remainder 1. For 17: 17 × 23 = 391. \
Let me double-check this: 17 × 20 = 340, 17 × 3 = 51, and 340 + 51 = 391. Yes, so it factors.

Is 23 prime? Yes. Is 17 prime? Yes. So the factorisation is complete.
"""
PRIME_SOLUTION = """\
No. Testing the primes up to √391 ≈ 19.8, the division by 17 comes out even:

391 = 17 × 23

Both factors are prime, so **391 is composite**."""

LETTERS = "How many times does the letter r occur in the word refrigerator?"
LETTERS_THOUGHT = """\
Let me spell the word: r, e, f, r, i, g, e, r, a, t, o, r. I count the r's: position 1, position 4, position 8, \
position 12. That makes four.

Wait, let me recount to be sure. r-e-f is one, r-i-g is two, e-r is three, a-t-o-r is four. So it is four.
"""
LETTERS_LOOP = """\

Hmm, but did I spell it right? Refrigerator: r, e, f, r, i, g, e, r, a, t, o, r. One, two, three, four. But wait, \
people write "fridge" with a d, and there is no d in refrigerator. Let me recount the letters once more.
"""

ODD_NUMBERS = "Prove that the sum of the first n odd numbers is n²."
ODD_NUMBERS_THOUGHT = """\
We want 1 + 3 + … + (2n − 1) = n². I could draw gnomons around a square, or use induction. Induction is the shorter \
one to write. Base: n = 1 gives 1 = 1². Step: adding 2n + 1 to n² gives (n + 1)². That works. I will write it out.
"""
ODD_NUMBERS_SOLUTION = """\
By induction on n.

**Base case.** For n = 1 the sum is 1 = 1².

**Induction step.** Suppose 1 + 3 + … + (2n − 1) = n². The next odd number is 2n + 1, and so

1 + 3 + … + (2n − 1) + (2n + 1) = n² + 2n + 1"""

PERCENT = "What is 15 % of 240?"
PERCENT_DRAFT = "15 % is 10 % and 5 % together. 10 % of 240 is 24, and 5 % is half of it, 12. Together 36."
PERCENT_AGAIN = "Let me verify with the fraction: 240 × 15 / 100 = 3600 / 100 = 36. The same. I present it concisely."
PERCENT_SOLUTION = "10 % of 240 is 24, 5 % is 12, so 15 % of 240 is 24 + 12 = **36**."

WEEKS = "How many days are 7 weeks and 3 days?"
WEEKS_THOUGHT = "A week has 7 days, so 7 weeks are 49 days. Adding 3 gives 52. Check: 52 = 7 × 7 + 3. Right."
WEEKS_SOLUTION = "7 weeks are 7 × 7 = 49 days, and 49 + 3 = **52 days**."

HEPTAGON = "What is the sum of the interior angles of a heptagon?"
HEPTAGON_THOUGHT = """\
A polygon with n corners splits into n − 2 triangles from one corner. A heptagon has 7 corners, so 5 triangles. Each \
has 180°, so 5 × 180° = 900°. For a check: a regular one then has 900° / 7 ≈ 128.6° in each corner, between the \
hexagon's 120° and the octagon's 135°. That fits."""
HEPTAGON_SOLUTION = "From one corner a heptagon splits into 7 − 2 = 5 triangles, so the sum is 5 × 180° = **900°**."

POWERS = "Which is larger, 3⁴ or 4³?"
POWERS_THOUGHT = "3⁴ = 3 × 3 × 3 × 3 = 81. 4³ = 4 × 4 × 4 = 64. So the first is larger, by 17."
POWERS_SOLUTION = "3⁴ = 81 and 4³ = 64, so **3⁴ is larger**."

SOCKS = "A drawer has 10 black and 10 white socks. How many must I take in the dark to be sure of a pair?"
SOCKS_THOUGHT = """\
The worst case is that the first socks are all of different colours. There are two colours, so two socks may differ. \
The third must have the colour of one of them: the pigeonhole principle. The count of 10 does not matter."""
SOCKS_SOLUTION = "With two colours, two socks may differ, but the third matches one of them. **Three** are enough."

LIGHT = "How long does light take from the Sun to the Earth? (日本語で「光」)"
LIGHT_THOUGHT = """\
The distance is about 149.6 million km and light goes 299,792 km/s. 149,600,000 / 299,792 ≈ 499 s, that is 8 min 19 s. \
The person adds that 「光」 means light; I can use the word. ☀️ → 🌍"""
LIGHT_SOLUTION = "About **499 s ≈ 8 min 19 s**: 149.6 × 10⁶ km ÷ 299,792 km/s. 光 (ひかり) は約8分19秒で届きます。☀️→🌍"

WEATHER = "What is the weather in Zürich, and in Oslo?"

SHORT = "What is 7 × 8?"
SHORT_THOUGHT = "7 × 8 = 56."
SHORT_SOLUTION = "7 × 8 = **56**."
