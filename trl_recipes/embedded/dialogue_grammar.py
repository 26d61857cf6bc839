"""The grammar of the embedded dialogue: every word and every sentence form, as text.

The notation is that of `grammar`: `symbol = ...` lists alternatives, `symbol+` those of a calm
speaker and `symbol-` those of an angry one, `<~symbol>` turns the mood around, `<@symbol>` is drawn
once a scene, so that a scene speaks of one place and one trouble.
"""

SPEECHES = """
speech+ = 2*<say> | 5*<say> <say> | 7*<say> <say> <say> | 4*<say> <say> <say> <say> | <reply> <say>
    | 3*<reply> <say> <say> | <reply> | <ask> | 2*<say> <ask> | 2*<say> <say> <ask> | <tale>
    | <tale> <ask>
speech- = 2*<say> | 5*<say> <say> | 6*<say> <say> <say> | <reply> <say> | 3*<reply> <say> <say>
    | <reply> | <ask> | 2*<say> <ask> | <say> <order> | <order> | 2*<order> <say> <say> | <tale>

reply+ = Yes. | Of course. | With pleasure. | Good morning, <@friend>. | Thank you, <@friend>.
    | So be it. | As you wish. | I am glad to hear it. | Very well. | You are kind. | That is true.
    | I see. | Good evening to you. | Come in, <@friend>. | Sit down, <@friend>. | Gladly.
    | I think so too. | You may be right. | Tell me more. | Go on. | Not at all. | Perhaps.
    | So they say. | Well, well.
reply- = No! | Never! | Not again! | What? | How dare you! | Be quiet, <@friend>! | Nonsense!
    | Leave me alone! | Enough of this! | That is a lie! | Out of my way! | For shame!
    | Look what you have done! | You again! | I knew it! | Who let you in? | Not another word!
    | It is too late! | Help! | Listen to me! | Stop! | I have had enough! | Not in my <@place>!

say = 6*<fact> | 5*<wish> | 4*<thought> | 3*<past> | 3*<if> | 2*<because> | <proverb>
fact = 3*the <thing> is <adj>. | 2*the <thing> and the <thing> are <adj>. | 2*my <kin> is <trait>.
    | there is a <adj> <thing> <where>. | nobody has seen the <thing> <when>.
    | the <person> <keeps> the <object> <where>. | 2*the <person> is <where>.
    | it is <adj> <where>. | your <thing> is <adj>, and so is your <thing>.
    | every <person> in town knows the <thing>. | we have <count> <things> and no <thing>.
    | this <thing> belongs to the <person>. | <count> <things> are <where>.
    | the <things> are <adj> <when>. | here comes the <person>. | the <person> has a <adj> <thing>.
    | my <kin> is a <person>, and a <trait> one. | the <@trouble> is the talk of the <@place>.
    | that is the <adj> <thing> of the <person>.
wish = 3*I want to <do> the <object>. | 2*I would like to <do> <where>. | let us <do> the <object>.
    | let us <go> <where>. | we must <do> the <object> <when>. | you should <do> your <objects>.
    | I hope that the <person> will <do> the <object>. | let me <do> it.
    | I need <count> <objects>. | please <do> the <object>, <@friend>.
    | I will <do> the <objects> <when>. | bring me the <object>. | we can <go> <where> <when>.
    | I shall <go> <where> and <do> the <object>. | somebody has to <do> the <object>.
    | all I ask for is a <adj> <thing>.
thought = 2*I think that the <thing> is <adj>. | I believe the <person> <did> the <object>.
    | I know a <trait> <person> <where>. | they say that the <person> <did> the <object>.
    | it seems to me that the <person> is <trait>. | I remember the <adj> <thing>.
    | my <kin> thinks that you are <trait>. | I wonder who <did> the <object>.
    | nobody told me about the <@trouble>. | I have heard of the <@trouble>.
    | I dream of a <adj> <thing> <where>. | the <person> believes in <adj> <things>.
    | we all know how the <@trouble> will end. | I have a <adj> feeling about the <thing>.
past = 2*the <person> <did> the <object> <when>. | I <did> the <object> <when>.
    | we <went> <where> <when>. | my <kin> <did> <count> <objects> <where>.
    | the <person> <went> <where> and <did> my <object>. | you <did> it <when>, <@friend>.
    | somebody <did> the <object> while we <went> <where>. | it <happened> <when>.
    | the <@trouble> <happened> <when>, <where>. | I found the <object> <where>.
    | the <person> sold me <count> <adj> <objects>. | we lost the <object> <where>.
if = if you <do> the <object>, I will <do> the <objects>.
    | if the <thing> is <adj>, we <go> <where>.
    | when the <person> comes, we will <do> the <object>. | if it is <adj>, I will <go> <where>.
    | before you <go> <where>, <do> the <object>. | unless you <do> it, the <person> will.
    | as long as the <person> is <where>, the <thing> is <adj>.
because = I <did> it because the <thing> was <adj>. | we stay because of the <@trouble>.
    | the <thing> is <adj>, but the <things> are <~adj>. | I am <trait>, not <~trait>.
    | my <kin> is <trait>, yet the <person> is <~trait>.
    | you are <trait>, <@friend>, but not <~trait>. | it was <~adj> once, and now it is <adj>.
    | the <person> laughed, so I <went> <where>.
proverb = a <adj> <thing> makes a <trait> <person>. | no <thing> without a <thing>.
    | one <person> is better than <count> <things>. | never trust a <trait> <person>.
    | <things> come and <things> go. | better a <adj> <thing> than a <~adj> <thing>.
    | what is <adj> today is <~adj> tomorrow. | first the <thing>, then the <thing>.
ask = 2*where is the <thing>? | 2*who <did> the <object>? | why is the <person> so <trait>?
    | have you seen my <object>? | what shall we do with the <object>? | is it <adj> <where>?
    | do you know the <person>? | when will the <person> <do> the <object>? | are you <trait>?
    | did you <do> the <objects> <when>? | will you <go> <where> with me?
    | how <adj> is the <thing>? | what do you say to the <@trouble>?
    | can a <person> <do> the <object>? | may I <do> it? | how many <things> does a <person> need?
    | who told you about the <@trouble>?
order = <do> the <object>! | do not <do> the <object>! | <go> <where>, and take the <object>!
    | call the <person>! | bring back my <objects>! | get out of the <@place>!
    | give me the <object>! | keep your <things> to yourself! | put down the <object>!
    | <do> it, or I will <go> <where>! | tell me who <did> the <object>!
    | somebody <do> the <objects>! | look at the <thing>!
tale = once there was a <trait> <person> who <did> the <object>. one day the <person> <went>
    <where>.
    | listen: the <person> <did> the <object>, and the <person> <did> the <objects>. what a
    <@trouble>.
    | last night I <went> <where>. there stood a <trait> <person> with a <object>.
    | my <kin> had a <adj> <thing>. the <person> <did> it <when>, and nobody <did> the <objects>.

shouts = 2*<shout> | 4*<shout> <shout> | 4*<shout> <shout> <shout>
    | 2*<shout> <shout> <shout> <shout>
shout = 5*<grab> the <loot>! | 3*who <grabbed> the <loot>? | 3*where is the <loot>? | <cry>!
    | 2*<cry>, <foe>! | 3*the <foe> <grabbed> the <loot>! | 2*give me the <loot>!
    | 2*give the <loot> to the <foe>! | 2*the <loot> is <gone>! | 2*the <loot> is <nearby>!
    | 2*the <foe> is <nearby>! | 2*look, the <foe>! | 2*do not <grab> the <loot>!
    | 2*where is the <foe>? | 2*bring the <loot> and the <loot>! | 2*why is the <loot> <gone>?
    | we want the <loot>! | 2*I want my <loot>! | run, the <foe> is <nearby>!
    | 2*the <foe> has the <loot>! | 2*I will <grab> the <loot>! | no <loot>, no <loot>!
    | is it <gone>? | 2*you <grabbed> the <loot>, <foe>! | nobody will <grab> the <loot>!
    | call the <foe>!
cry = help | stop | never | enough | no | be quiet | listen | fire | come here | get out | wait
    | shame | open the door | leave me alone | catch him | not again | hurry | let me in | too late
grab = take | steal | burn | break | hide | sell | drop | lose | find | bring | keep | save
grabbed = took | stole | burned | broke | hid | sold | dropped | lost | found | brought | kept
    | saved
loot = key | ring | boat | letter | bell | lamp | coin | crown | clock | horse | goose | map | hat
    | coat | knife | cake | bread | wine | money | gold | door | book | rope | light | fish | cat
foe = thief | king | queen | judge | baker | doctor | captain | sailor | mayor | cook | spy | liar
    | fool | widow | nurse
gone = gone | mine | broken | lost | stolen | old | yours | cold | here
nearby = here | in the house | at the door | on the roof | in the garden | at the harbour
    | on the boat | in the tower | under the bridge | at the market | on the stairs

direction = <enters> <where> | holding the <object> | to the <person> | <manner>
    | looking at the <thing> | puts the <object> away | hides the <object> | with a <trait> smile
    | goes to the window | aside | after a long silence | takes the <object> | the bell rings
    | it begins to rain | a <person> enters | picks up the <objects> | a dog barks
    | reading from a letter | from behind the door
enters = comes back | walks up and down | sits down | stands up | waits
manner = laughing | in a low voice | under the table | half asleep | out of breath | in tears
"""

WORDS = """
thing = 5*<object> | bread | soup | coffee | wedding | market | harvest | garden | orchard | field
    | bridge | road | river | well | mill | tower | wall | roof | floor | horse | goat | goose
    | cat | donkey | rooster | storm | wind | rain | snow | fog | moon | tide | fire | smoke
    | weather | voyage | price | law | truth | news | night | summer | winter | sea | island
    | prison | church | debt | rumour | bargain | promise | supper | breakfast | kitchen | cellar
    | attic | square | clockwork
object = key | letter | lamp | boat | bell | clock | ladder | lantern | rope | basket | barrel
    | bucket | kettle | loaf | cheese | apple pie | herring | soup bowl | salt | sugar | coffee pot
    | tea | wine | window | door | gate | stove | table | chair | bench | cradle | hammer | saw
    | knife | spoon | plate | cup | bottle | blanket | coat | hat | glove | boot | ring | coin
    | purse | map | book | ledger | candle | violin | drum | trumpet | play | poem | story | net
    | compass | telescope | anchor | sail | mast | wheel | cart | saddle | mirror | picture
    | umbrella | newspaper | ticket | medicine | cake | contract | portrait | piano | necklace
    | crown | sword | flag | statue | suitcase | recipe | diary
things = 4*<objects> | potatoes | onions | eggs | gardens | fields | bridges | horses | goats
    | geese | cats | donkeys | chickens | songs | secrets | promises | debts | stones | ships
    | neighbours | children | sailors | bees | pigeons | shoes | pumpkins | nuts | storms | kings
    | lawyers | weddings | islands | rumours | prices | laws | winters | roads | rivers | strangers
    | thieves | soldiers | guests
objects = keys | letters | lamps | boats | bells | clocks | ladders | ropes | baskets | barrels
    | nails | kettles | loaves | apples | herrings | windows | doors | chairs | knives | spoons
    | plates | cups | bottles | blankets | coats | gloves | boots | rings | coins | maps | books
    | candles | drums | stories | sails | nets | wheels | carts | mirrors | pictures | umbrellas
    | tickets | flowers | roses | pears | cakes | stamps | buttons | pumpkin pies | flags | pearls
    | contracts | curtains
person = baker | butcher | captain | sailor | fisherman | miller | gardener | doctor | nurse
    | teacher | judge | lawyer | mayor | postman | watchman | blacksmith | carpenter | tailor
    | cobbler | barber | painter | piano tuner | fiddler | singer | dancer | actor | stranger
    | merchant | farmer | shepherd | hunter | cook | waiter | innkeeper | widow | bride | orphan
    | thief | smuggler | spy | soldier | general | queen | king | prince | lighthouse keeper
    | ferryman | clockmaker | printer | librarian | midwife | beggar | magician | organ player
    | customs officer | night porter
kin = mother | father | sister | brother | aunt | uncle | cousin | grandmother | grandfather
    | daughter | son | wife | husband | nephew | niece | neighbour | partner | landlady
friend+ = my dear | my friend | old friend | dear neighbour | sir | madam | captain | doctor
    | my child | young man | dear sister
friend- = you fool | you liar | you old goat | you rascal | sir | madam | you thief | you coward
    | young man | you donkey
adj+ = good | fine | warm | new | clean | quiet | lovely | bright | sweet | fresh | strong | golden
    | blue | green | soft | useful | solid | famous | ready | safe | free | sunny | tidy | ripe
    | simple | grand | open | round | splendid | beautiful | precious | perfect | sound | white
    | smooth | full
adj- = bad | cold | old | dirty | false | loud | sad | ugly | dark | bitter | rotten | rough
    | cursed | weak | empty | wild | black | grey | hard | useless | broken | late | dangerous
    | lost | wet | rusty | crooked | hopeless | heavy | locked | hollow | expensive | ridiculous
    | stolen | forbidden | cracked
trait+ = good | kind | honest | quiet | happy | clever | gentle | brave | lucky | rich | strong
    | young | calm | wise | patient | merry | polite | free | proud | generous | faithful
    | cheerful | careful | sober | modest | friendly | tender | noble | curious | grateful
    | charming | loyal | sensible
trait- = bad | cruel | false | loud | sad | ugly | stupid | rough | cowardly | poor | weak | wild
    | foolish | greedy | angry | useless | wicked | rude | dangerous | lost | ashamed | stubborn
    | crooked | lazy | jealous | careless | drunk | hopeless | proud | bitter | silly | vain
    | ungrateful | suspicious
do+ = mend | clean | paint | carry | buy | keep | find | share | bless | guard | polish | measure
    | count | bring | wash | show | draw | hang up | copy | follow | save | fill | hold | lend
    | praise | repair | admire | weigh | deliver | return | wrap | borrow | choose | fetch | lift
    | decorate | remember
do- = break | burn | steal | sell | hide | drop | spoil | lose | bury | drown | cut | smash | curse
    | lock up | forget | throw away | pull down | leave | beat | waste | tear | fight for | deny
    | drag away | pawn | shake | refuse | ruin | blame | scatter | swallow | crush | destroy
    | forge | hate
did+ = mended | cleaned | painted | carried | bought | kept | found | shared | blessed | guarded
    | polished | measured | counted | brought | washed | showed | drew | copied | saved | filled
    | held | praised | repaired | admired | weighed | delivered | returned | wrapped | borrowed
    | chose | fetched
did- = broke | burned | stole | sold | hid | dropped | spoiled | lost | buried | drowned | smashed
    | cursed | locked up | forgot | left | wasted | tore | fought over | denied | dragged away
    | pawned | refused | ruined | blamed | scattered | swallowed | crushed | destroyed | forged
    | confiscated | hated
keeps = keeps | hides | mends | wants | sells | guards | counts | paints | needs | loves | admires
go = go | walk | ride | sail | run | hurry | travel | wait | sleep | dance | sing | dig | climb
went = went | walked | rode | sailed | ran | hurried | travelled | waited | slept | danced | sang
    | climbed
happened = happened | began | ended | came to light | changed everything
where = at the harbour | in the kitchen | under the bridge | by the river | behind the mill
    | in the cellar | at the market | in the attic | on the roof | at the inn | near the church
    | in the garden | on the island | over the hill | by the sea | in the tower | at the station
    | across the square | in the north | at home | in the forest | on board | at the bakery
    | in the barn | upstairs | outside | in the street | by the well | in prison | at the theatre
    | in the lighthouse
when = today | tomorrow | tonight | this morning | last night | last winter | last summer
    | on Sunday | on Monday | on Friday | in spring | in autumn | at noon | at midnight | at dawn
    | long ago | twice | before breakfast | after supper | every evening | in the rain | years ago
    | at once | too late | in time | for ever | until the evening | since the flood
count = two | three | four | five | six | seven | eight | nine | ten | twelve | twenty | forty
    | a hundred | a thousand | too many | a dozen
place = house | kitchen | shop | inn | harbour | town | street | garden | theatre | bakery
trouble = wedding | fire | flood | theft | trial | quarrel | election | duel | shipwreck
    | inheritance | voyage | funeral | wager | strike | concert | lottery

scenery = the harbour | the kitchen of the inn | a road by the river | the market | the clock tower
    | a cellar | the bakery | before the church | the lighthouse | a garden behind the mill
    | on board a ship | the theatre | a court room | the station | the bridge | an attic | a prison
hour = at dawn | at noon | at night | in the evening | in the rain | before breakfast
    | after supper | in the fog | on Sunday | at midnight | in spring | in winter
    | during the flood | an hour later

speaker = AGNES | OTTO | RUBEN | CLARA | HUGO | EDITH | JONAS | EMIL | GRETA | SIMON | LOTTE
    | FELIX | IRENE | IDA | ANNA | BAKER | COOK | JUDGE | MAYOR | WIDOW | THIEF | QUEEN | SPY
    | KING | NURSE | DOCTOR | SAILOR | CAPTAIN
"""
