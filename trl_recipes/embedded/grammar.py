"""The grammar of the embedded film reviews: every word and every sentence form, as text.

A line `symbol = ...` lists what the symbol may become, with `|` between the alternatives; the
indented lines below belong to it. `symbol+ = ...` and `symbol- = ...` add some for one mood alone.

    <symbol>    expands in the mood at hand: a review starts in the mood of its verdict
    <~symbol>   expands in the other mood ("never <~adj>" in a good mood is "never dull")
    <@symbol>   is drawn once a review, so that a review speaks of one director and one star
    3*...       makes an alternative three times as likely

`a` before a vowel becomes `an`, and a sentence's first letter a capital, when a review is written.
Openings are short and mostly say nothing of the mood, and most forms can still turn around, so that
a few words decide: that is what makes the text a good field for reinforcement learning.
"""

FORMS = """
review = <alone> | 12*<start> <end> | 6*<start> <more> <end> | 3*<doubt> <turn>
    | 3*<doubt> <turn> <end> | 3*<start> <more> <more> <end> | 2*<start> <doubt> <turn> <end>
    | 2*<fact> <start> <end> | <fact> <start> <more> <end> | <start> <doubt> <turn> <more> <end>
    | <start> <more> <more> <more> <end> | <fact> <doubt> <turn> <more> <end>
    | <start> <fact> <more> <doubt> <turn> <end> | <start> <more> <more> <more> <more> <end>

alone = 3*<start> | 2*<statement> | 2*<mixed> | <asked> | <statement> <verdict>
asked = Is it <adj>? It is. | Is it <~adj>? Not for a <unit>.
    | Do you like <@title>? You <willlove> it. | Why is it so <adj>? Ask <@director>.
    | Is the <thing> <adj>? In every <unit>.
start = 8*<lead>, <claim>. | 6*<claim>. | 3*<view> <claim>. | 5*<mixed> | 5*<visit> | 2*<statement>
    | <exclaim> | <relative> says <fair>. | <relative> thinks that <fair>.
more = 6*<statement> | 2*<mixed> | 2*<fact> | <exclaim>
end = 6*<verdict> | 2*<statement> | <exclaim>

doubt = 6*<granted>, <~claim>. | 2*<~claim>. | 2*<others> <~loved> it.
granted = granted | true | admittedly | yes | of course | I grant you | at first | early on
    | for a while | on paper | in the trailer
others = the critics | most critics | my friends | my neighbours | the people next to me
    | the young | the fans | my colleagues | many viewers | half the room
turn = 3*<still>, <claim>. | 3*But <claim>. | And yet <claim>. | Yet <claim>. | But I <loved> it.
    | <still>, I <loved> it.
still = still | even so | all the same | nevertheless | however | then again | in the end
    | no matter

statement = 8*<claim>. | 8*<lead>, <claim>. | 2*<claim> and <claim>. | 2*<claim>, and <claim>.
    | 2*<claim> because <fair>. | <claim>; <claim>. | 2*<view> <claim>. | <relative> says <fair>.
    | <relative> thinks that <fair>. | What I <loved> was the <thing>. | <adj>, <adj> and <adj>.
    | <degree> <adj>. | A <adj> <film> with a <adj> <thing>. | A <noun> from start to finish.
    | A <adj> <film>, and <claim>. | Few <films> are so <adj>. | Rarely is a <film> so <adj>.
    | Who knew a <@genre> could be so <adj>? | The <thing> alone is a <noun>.
    | Nothing about it is <~adj>. | Not since <@title> was I so <felt>.
    | You <willlove> the <thing>. | Anyone who likes a <@genre> <willlove> this.
    | Call it a <noun>. | Think of a <adj> <@genre> with <adj> <things>. | This one <works>.
    | <@title> is a <adj> <@genre>. | <@title> <works>. | <@title>, by <@director>, <works>.
    | From the <thing> to the <things>, it is <adj>. | Here is a <adj> <film>.
    | So <adj>, so <adj>! | <felt>, that is how I left. | In a word: <adj>. | My verdict: <adj>.
statement+ = Best of all, <claim>. | Happily, <claim>. | I am glad to say that <claim>.
    | It helps that <claim>. | Luckily, <claim>. | Thankfully, <claim>. | Watch it for the <thing>.
    | I laughed, I cried, and I <loved> it. | Bravo to <@director>. | The <things> made my week.
    | I kept waiting for it to go wrong, and it never did. | I could not look away.
    | It has all the <merit> that other <films> lack. | It put a smile on my face.
    | The <things> stayed with me for days. | I would change nothing about the <thing>.
    | Who needs <~merit> when the <thing> is this <adj>?
statement- = Worst of all, <claim>. | Sadly, <claim>. | I am sorry to say that <claim>.
    | It hurts that <claim>. | Alas, <claim>. | Unfortunately, <claim>. | Blame the <thing>.
    | I yawned, I sighed, and I <loved> it. | Shame on <@director>. | The <things> ruined my week.
    | I kept waiting for it to get better, and it never did. | I looked at my watch six times.
    | It has none of the <~merit> that other <films> have. | It put a frown on my face.
    | If only the <thing> were half as <~adj> as the <things>. | Where did the <~merit> go?
    | There is a <~adj> <film> in here somewhere, and this is not it.
    | I would change everything about the <thing>. | The trailer had all the <~adj> <units>.

exclaim = What a <noun>! | What a <adj> <film>! | How <adj> the <thing> is! | How <adj> it all is!
    | What a <adj> <thing>! | What <adj> <things>! | Such <merit>! | So much <merit>!
    | What a <adj> way to spend <evening>! | How <adj> can a <film> be?

visit = I saw <@title> <when> and <loved> it. | I saw this <when> and <loved> every <unit>.
    | We watched it <where>, and <claim>. | <relative> took me to <@title>, and I <loved> it.
    | I walked in <~felt> and walked out <felt>. | I expected a <~noun> and got a <noun>.
    | I went in hoping for nothing and came out <felt>. | <when> I watched this, and <claim>.
    | We saw it <when>, and the <thing> <does>. | I read the book first, and <claim>.
    | We rented this <when>; <claim>. | I have seen it twice, and <claim>.
    | <relative> and I <loved> the <thing>. | <relative> chose it, and I was <felt>.

fact = <@director> directs this <@genre> about <premise>. | The story follows <premise>.
    | It is set in <place>. | <@star> plays <role>. | It runs for two hours. | I had read the book.
    | It is based on a novel. | It is based on a true story. | The budget was small.
    | <@director> also wrote the script. | The <film> opens in <place>. | <@star> is <role>.
    | It takes place over one night. | This is the second <film> by <@director>.
    | Most of it happens in <place>. | <premise> meet in <place>. | We saw it <where>.

claim = 6*<fair> | <mine>
mine = 4*I <loved> it | 3*I <loved> the <thing> | I <loved> the <things> | I <loved> every <unit>
    | 3*I was <felt> | 2*I was <felt> <throughout> | we were all <felt> | we <loved> it
fair = 10*the <thing> is <adj> | 9*the <things> are <adj> | 3*the <thing> is <degree> <adj>
    | 2*the <things> are <degree> <adj> | 4*the <thing> <does> | 4*the <things> <do>
    | 5*it is <adj> | 4*it is <degree> <adj> | it is <mild> | 3*it <works> | 2*the <film> <works>
    | this <@genre> <works> | this is a <adj> <film> | it is a <noun> | it is a <adj> <@genre>
    | the <film> is a <noun> | 2*<@star> is <player> | <@star> is <player> as <role>
    | <@star> gives a <adj> performance | <@star> plays <role> <manner> | <relative> <loved> it
    | there is <merit> in every <unit> | the <thing> is full of <merit> | it is full of <merit>
    | every <unit> is <adj> | every <unit> of it <works> | the <thing> is never <~adj>
    | the <things> are never <~adj> | the <thing> is not <~adj> at all | it is never <~adj>
    | the <thing> is anything but <~adj> | it is hardly <~adj> | it is far from <~adj>
    | it is not the <~noun> I <expected> | nobody could call the <thing> <~adj>
    | there is nothing <~adj> about the <thing> | there is not a <~adj> <unit> in it
    | it is no <~noun> | <@director> has made a <noun> | <@director> directs <manner>
    | the <thing> and the <thing> are <adj> | the <thing> is <adj> and the <things> are <adj>
    | the <adj> <thing> <does> | the <thing> is a <noun> | a <adj> <thing> makes it <adj>
    | the <adj> <things> <do> | the <thing>, <adj> and <adj>, <does>
    | <@star> and <@rival> are <player>

mixed = 4*<~claim>, but <claim>. | 2*<~claim>, but I <loved> it. | <~claim>, yet it <works>.
    | 2*<~claim>, but it is <adj>. | 2*although <~claim>, <claim>. | <claim>, even if <~claim>.
    | <claim>, though <~claim>. | 2*<~claim>, yet <claim>. | for all its <~merit>, <claim>.
    | 3*for all its <baggage>, <claim>. | despite the <~adj> <thing>, <claim>.
    | even with a <~adj> <thing>, <claim>. | the <thing> may be <~adj>, but <claim>.
    | the <thing> is <~adj>, the <things> are <~adj>, and still I <loved> it.
    | <~adj> <things> aside, <claim>. | it is <~adj> at times, but <claim>.
    | whatever the <thing> lacks, <claim>. | it is more <adj> than <~adj>.
    | <others> <~loved> it, but I <loved> it. | it starts as a <~noun> and ends as a <noun>.
    | the first hour is <~adj>, the second <adj>, and <claim>.

lead = in short | in the end | all in all | to be honest | frankly | for my money | to my mind
    | as it happens | if you ask me | on the whole | on a big screen | late at night | quite simply
    | from the first <unit> | from the opening shot | by the last reel | after an hour
    | once the lights go down | as a fan of the book | whatever the critics say | like it or not
    | whatever you have heard | when the credits roll | given the budget | given the cast
    | with a full house | as <films> go | for a <@genre> | against all advice | before long
    | make no mistake | let me be clear | believe me | minute by minute | beneath the noise
    | from start to finish | this time | as always | for once | with <@star> in it | years later
    | to nobody's surprise | to everybody's surprise | in every <unit> | under <@director>
view = I think | I must say | I would say that | you can tell that | everyone knows that
    | my feeling is that | let me say that | nobody told me that | it is clear that
    | by now you know that | I found that | <relative> and I agree that

verdict+ = See it twice. | Go and see it. | Do not miss it. | Highly recommended.
    | I left with a <smile>. | I would watch it again <soon>. | I cannot recommend it enough.
    | Bring <company>. | It deserves every <prize>. | <high> out of ten.
    | You will not regret it. | What a joy. | I want to see it again <soon>.
    | It is my favourite <film> of the <period>. | <many> stars. | Run to it.
    | I would pay twice for this. | Give it every <prize>. | Take <company>.
    | I <cheered> at the end.
    | I am already waiting for the next one by <@director>. | Worth every <coin>. | A must.
    | Trust me and buy a ticket. | It made my whole <period> better. | I am so glad we went.
    | <art> at its best. | We need more <films> like this. | It is worth your time.
    | I bought the soundtrack on the way home. | I did not want it to end.
    | Nobody wanted to leave. | If you see one <@genre> this <period>, make it this one.
    | Hooray for <@star>. | <company> will <cheer> too. | See it with <company>.
    | I will see it again with <company>. | The <film> of the <period>.
verdict- = Skip it. | Avoid it. | Do not bother. | Not recommended. | I left with a <ache>.
    | I want my money back. | I cannot recommend it to anybody. | Leave <company> at home.
    | It deserves no <prize>. | <low> out of ten. | You will regret it. | What a waste.
    | I never want to see it again. | It is my least favourite <film> of the <period>. | No stars.
    | I would not watch it for free. | Give it a miss. | Warn <company>. | I <booed> at the end.
    | I dread the next one by <@director>. | Not worth a <coin>. | Never again. | Run from it.
    | Trust me and stay at home. | It spoiled my whole <period>. | I am sorry we went.
    | <art> at its worst. | Nobody needs more <films> like this. | It is not worth your time.
    | I fell asleep on the way to the end. | I could not wait for it to end. | Half the room left.
    | If you skip one <@genre> this <period>, make it this one. | Poor <@star>.
    | Read a book instead. | <company> will <boo> too. | Keep it away from <company>.
    | I will never show it to <company>. | The flop of the <period>.
company = your whole family | your friends | your mother | a friend | the children | everybody
    | your neighbours | the whole street | your grandmother | the office
coin = penny | minute | hour | step
prize = prize | award | trophy | medal
period = year | week | month | decade | summer | winter
soon = tomorrow | tonight | next week | at once | on Friday
art = cinema | storytelling | film-making | entertainment
high = nine | ten | eleven
low = one | two | zero | three
many = five | four and a half | all the
smile = smile | grin | song in my head | lump in my throat
ache = headache | frown | sigh | stiff neck
cheered = cheered | clapped | danced | smiled
booed = booed | groaned | yawned | snored
cheer = cheer | clap | dance | smile
boo = boo | groan | yawn | snore
"""

WORDS = """
film = 5*film | 3*movie | picture | <@genre>
films = films | movies | pictures | stories
genre = comedy | drama | thriller | western | romance | mystery | musical | sequel | remake
    | documentary | satire | war film | road movie | family film
thing = acting | plot | story | script | music | score | soundtrack | camera work | photography
    | lighting | editing | pace | ending | opening | final act | first half | second half
    | dialogue | humour | casting | direction | sound | twist | hero | villain | cast | lead
    | premise | mood | rhythm | last scene | tone | setting | suspense
things = performances | jokes | songs | characters | costumes | sets | effects | stunts | chases
    | fight scenes | close-ups | scares | twists | lines | locations | images | colours
    | flashbacks | love scenes | quiet moments | children | visuals | set pieces
unit = minute | scene | frame | line | shot | moment | second
units = minutes | scenes | frames | lines | shots | moments

adj+ = brilliant | wonderful | superb | excellent | great | terrific | fantastic | lovely
    | beautiful | delightful | charming | clever | fresh | funny | gripping | moving | thrilling
    | elegant | graceful | sharp | witty | warm | tender | stunning | dazzling | inspired
    | magnificent | remarkable | impressive | strong | perfect | marvelous | fascinating | rich
    | subtle | honest | haunting | exquisite | crisp | assured | original | irresistible
    | memorable | enjoyable | engaging | satisfying | heartfelt | glorious | exciting | vivid
    | sparkling | good | smart | captivating | breathtaking | outstanding | amazing | powerful
adj- = terrible | awful | dull | boring | bad | poor | horrible | dreadful | weak | stupid | lame
    | ridiculous | pathetic | annoying | tedious | tiresome | bland | flat | clumsy | lazy | stale
    | wooden | confused | hollow | shallow | sloppy | messy | forgettable | forced | crude | ugly
    | cheap | dreary | lifeless | pointless | predictable | painful | miserable | mediocre
    | soulless | disappointing | embarrassing | charmless | gloomy | lousy | empty | atrocious
    | hopeless | sour
degree+ = utterly | truly | simply | really | quietly | thoroughly | always | surprisingly | quite
    | consistently | very | genuinely | endlessly | so
degree- = utterly | painfully | truly | simply | rather | hopelessly | consistently | thoroughly
    | really | oddly | very | plainly | endlessly | so
mild+ = better than it looks | not bad at all | worth a look | good enough | pleasant enough
    | worth the trip | easy to like | hard to resist | hard to fault
mild- = worse than it looks | not good at all | not worth a look | not good enough
    | nothing special | barely watchable | hard to like | easy to resist | hard to bear
noun+ = triumph | delight | joy | masterpiece | gem | treat | pleasure | marvel | winner | wonder
    | treasure | success | classic | gift | celebration | hit
noun- = disaster | mess | bore | failure | disappointment | waste | chore | dud | flop | insult
    | shame | slog | letdown | muddle | nightmare
merit+ = charm | wit | grace | joy | warmth | beauty | intelligence | life | heart | imagination
    | craft | energy | tenderness | wisdom | passion | love | magic
merit- = laziness | vanity | stupidity | boredom | bad taste | padding | confusion | emptiness
    | cliche | bad jokes | gloom | cruelty | nonsense | pain | dead air
baggage = noise | money | fame | stars | speed | talk | tricks | violence | history | length
    | ambition | budget | songs | twists | rules | politics
works+ = works | soars | shines | sparkles | sings | delivers | glows | delights | wins you over
    | never puts a foot wrong | holds its nerve | grabs you | casts a spell | hits the mark
    | keeps you guessing | takes your breath away | gets it right | grows on you
    | leaves you smiling | deserves your love | is worth the wait
works- = fails | drags | sags | stumbles | bores | grates | falls flat | fizzles out
    | runs out of steam | wastes its cast | misses the mark | collapses | goes nowhere
    | tries your patience | outstays its welcome | sinks like a stone | leaves you cold
    | never finds its feet | puts you to sleep | gets it wrong
does+ = works | shines | sparkles | sings | delights | soars | surprises | glows | hits the mark
    | pays off | lifts the whole film | wins you over | holds the attention | feels alive | charms
    | saves the day | never misses | touches the heart | makes you smile | impresses
does- = fails | drags | sags | grates | stumbles | disappoints | falls flat | misses the mark
    | goes nowhere | wears thin | sinks the whole film | tries your patience | leaves you cold
    | feels fake | never convinces | never comes alive | bores | irritates | makes you cringe
    | annoys
do+ = work | shine | sparkle | sing | delight | soar | surprise | glow | hit the mark | pay off
    | lift the whole film | win you over | hold the attention | feel alive | charm | save the day
    | never miss | touch the heart | make you smile | impress
do- = fail | drag | sag | grate | stumble | disappoint | fall flat | miss the mark | go nowhere
    | wear thin | sink the whole film | try your patience | leave you cold | feel fake
    | never convince | never come alive | bore | irritate | make you cringe | annoy
loved+ = loved | adored | enjoyed | admired | cherished | liked | praised
loved- = hated | loathed | disliked | regretted | could not stand | could not bear | despised
willlove+ = will love | will adore | will enjoy | will remember | will treasure
willlove- = will hate | will loathe | will regret | will curse | will resent
felt+ = moved | thrilled | enchanted | hooked | charmed | delighted | happy | dazzled | touched
    | amazed | grateful | entertained | pleased
felt- = bored | annoyed | disappointed | lost | irritated | asleep | angry | miserable | tired
    | embarrassed | appalled | cheated
expected+ = feared | dreaded | was warned about | had been told to expect
expected- = hoped for | wanted | was promised | had been told to expect
throughout = throughout | from start to finish | within minutes | by the end | all the way
player+ = brilliant | wonderful | superb | terrific | magnificent | charming | funny | electric
    | fearless | perfect | splendid | a joy | a delight | wonderful company | outstanding
player- = terrible | awful | wooden | stiff | lost | hopeless | dreadful | lifeless | miscast
    | bland | irritating | unconvincing | a bore | a disaster | ridiculous
manner+ = with grace | with wit | with real warmth | with flair | with great skill | with style
    | with love | to perfection | beautifully | brilliantly | with a light touch
manner- = without grace | without wit | with no warmth | badly | with no skill | without style
    | with a blank stare | poorly | terribly | with a heavy hand | half asleep

director = Marta Voss | Daniel Okafor | Ines Calder | Piet Larsen | Ruth Amadi | Tomas Brandt
    | Omar Haddad | Greta Lind
star = Anna Bell | Victor Sands | Lena Ortiz | Hugo Marsh | Ida Novak | Sam Carter | Rosa Vance
    | Mira Patel | Leo Grant | Max Doyle
rival = Alice Penn | Jane Frost | Sofia Hart | Ben Archer
title = Salt Harbour | The Ninth Door | Paper Lanterns | The Long Shore | Iron Garden
    | The Clockmaker | The Quiet Twin | The Lighthouse Bet | Small Hours | Night Ferry
relative = my sister | my brother | my wife | my husband | my mother | my uncle | our daughter
    | my best friend | my grandmother | the woman beside me | our neighbour | my father
role = the widow | the detective | the old king | the pianist | the thief | the boxer | the teacher
    | the spy | the judge | the twin
premise = two sisters who run a hotel | a retired boxer and his daughter
    | a lighthouse keeper and a spy | a pianist and her rival | a widow and her lawyer
    | a judge and a thief | a nurse and a sea captain | two strangers on a train
place = Lisbon | a small harbour town | the desert | an empty hotel | wartime Paris
    | a snowed-in village | a hospital | the north of Norway | a travelling circus | an old theatre
    | a school by the sea
when = last night | on a rainy Sunday | on Friday | on a long flight | last week | at a festival
    | with friends | on television | years ago | yesterday | in an empty cinema
where = at home | at the cinema | on a plane | in a packed theatre | at a festival | in the park
    | with the children
evening = an evening | a Sunday | two hours | a night out
"""
