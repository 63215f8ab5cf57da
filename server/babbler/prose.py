"""What the babbler's tokenizer is trained on: the only words it has."""

PROSE = """\
A server waits for a question, and a question is only a line of text that somebody typed. The text \
is cut into small pieces, each piece becomes a number, and the numbers walk one after another \
through the layers of a model. At the end of the walk there is a guess about the next piece. The \
guess is turned back into text and sent to the reader, and then the model makes another guess, \
until it has nothing more to say or until it has said enough.

Most layers of this model remember with a small matrix. When a new word comes, the matrix first \
forgets a little of what it knew, then looks up what it would have expected, and writes down only \
the difference. That is the delta rule. It is an old idea: learn from the error, not from the \
event. Every fourth layer keeps the whole history instead, and looks at all of it each time. The \
first kind is cheap and a bit vague, the second is exact and grows with every word. Together they \
read long books at the price of short ones.

Some of the layers have many experts. For every word a router chooses a few of them, asks for \
their opinion, weighs the answers and adds them up. One expert is always asked, because somebody \
has to know the grammar. The others may know about rivers, or recipes, or the names of stars, but \
nobody told them so: they found their own work while they were trained.

This little model was never trained. Its weights were drawn from a hat, so it does not know that \
fire is hot, that two and two make four, or that a week has seven days: Monday, Tuesday, \
Wednesday, Thursday, Friday, Saturday and Sunday. It has never seen January or December, spring, \
summer, autumn or winter. It will answer every question with the same cheerful confidence, and it \
will always be wrong, unless it is right by chance. Please do not ask it for advice about money, \
health, love or the weather. It is here so that you can see the machine running before you give \
it something to think about.

Once upon a time there was a river that wanted to be a road. It asked the mountain for help, but \
the mountain said: why would you want to lie still under the wheels of carts, when you can sing \
all night and reach the sea in the morning? The river thought about it for a hundred years. Then \
it asked the bridge, and the bridge said: I am a road, and I have never been anywhere. So the \
river went on, past the green fields and the grey houses, under the bridge and over the stones, \
and if nobody has stopped it, it is still running today.

The old cook wrote: take two onions, a large carrot, three cups of water, some salt and pepper, \
and a good piece of butter. Cut everything small. Warm the butter in a pan, add the onions first, \
and wait until the kitchen smells like home. Then add the rest, close the lid, and do nothing for \
twenty minutes. Doing nothing is the hardest part of the recipe. Serve it with bread, and with \
somebody you like.

Dear reader, thank you for your letter of the fourth. Yes, the blue window is still open, and no, \
the cat has not come back. We looked behind the garden wall, inside the empty barrel and under the \
wooden table, where we found your other glove, a silver key, and eleven pages of a very strange \
story about numbers. Could you tell us how it ends? Yours truly, the neighbours.

Here is a small program, for the sake of its brackets:

def greet(name: str) -> str:
    if not name:
        return "Hello, world!"
    for letter in name:
        print(letter, end=" ")
    return f"Hello, {name}!"

And here is a table in another notation: {"city": "Paris", "days": [1, 2, 3], "rain": false, \
"wind": null, "note": "bring a coat"}. A list may also look like this:

- first, read the question;
- second, think about it;
- third, write the answer;
- and then stop.

What did we learn? That a good answer is short, that a short answer takes time, and that it is \
better to say "I do not know" than to invent something. However, a model can only say what is \
likely. Perhaps that is true of people as well. Anyway, the evening is coming, the lamps are lit \
along the street, and the last train is leaving in five minutes. Good night, and good luck!
"""
